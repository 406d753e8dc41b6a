"""From noise to latent."""

from comfy_api.latest import io

from ..host.sampling import sampling
from ..wan_model import solvers
from .inputs import fraction
from .search import aliases


def expert_inputs() -> list:
    """What only a run of A14B's two experts needs."""
    return [
        io.Model.Input(
            "low_noise_model",
            optional=True,
            tooltip="The low-noise expert of Wan 2.2 A14B; the high-noise one goes to model. It takes over at "
            "the boundary, after the first one has left the device.",
        ),
        io.Float.Input(
            "low_noise_guidance",
            default=0.0,
            min=0.0,
            max=30.0,
            step=0.1,
            optional=True,
            tooltip="Guidance of the low-noise expert. 0 is the same as guidance. Official: 3 after 4 for "
            "text, 3.5 for both for images.",
        ),
        fraction(
            "boundary",
            0.0,
            "Noise level below which the low-noise expert works. 0 is the official one: 0.875 for "
            "text, 0.9 for image to video.",
            optional=True,
        ),
    ]


class WanSampler(io.ComfyNode):
    """LATENT sampled by one of Wan's own solvers on its official noise schedule."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WanSampler",
            display_name="Wan Sampler",
            category="Wan/sampling",
            **aliases("ksampler", "unipc", "dpm++", "euler", "video to video", "high noise low noise"),
            description="Samples a clip with the official solvers and noise schedule of Wan.",
            inputs=[
                io.Model.Input("model", tooltip="A Wan model, with or without LoRAs and patches."),
                io.Conditioning.Input("positive", tooltip="What the clip should show."),
                io.Conditioning.Input("negative", tooltip="What it should not show. Not used at guidance 1."),
                io.Latent.Input("latent", tooltip="An empty latent, or an encoded clip (with denoise below 1)."),
                io.Int.Input("steps", default=30, min=1, max=1000, tooltip="Solver steps. Official: 40 to 50."),
                io.Float.Input(
                    "guidance",
                    default=5.0,
                    min=1.0,
                    max=30.0,
                    step=0.1,
                    tooltip="Classifier-free guidance scale. 1 halves the work and ignores the negative prompt.",
                ),
                io.Float.Input(
                    "shift",
                    default=5.0,
                    min=0.1,
                    max=100.0,
                    step=0.1,
                    tooltip="Time shift of the noise schedule. Official: 5, and 3 for 480p image to video.",
                ),
                io.Combo.Input(
                    "solver",
                    options=list(solvers.SOLVERS),
                    default="unipc",
                    tooltip="unipc and dpmpp are the official second-order solvers, euler is first-order.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Seed of the noise: the same seed and settings give the same clip.",
                ),
                io.Float.Input(
                    "denoise",
                    default=1.0,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip="1 makes a new clip. Below 1 starts from the connected clip: 0.3 changes little.",
                ),
                *expert_inputs(),
            ],
            outputs=[io.Latent.Output(tooltip="The finished clip, for a decoder.")],
        )

    @classmethod
    def execute(
        cls,
        model,
        positive,
        negative,
        latent,
        steps,
        guidance,
        shift,
        solver,
        seed,
        denoise,
        low_noise_model=None,
        low_noise_guidance=0.0,
        boundary=0.0,
    ) -> io.NodeOutput:
        schedule = sampling.Schedule(steps=steps, shift=shift, solver=solver, denoise=denoise)
        stages = sampling.experts(model, guidance, low_noise_model, low_noise_guidance, boundary)
        return io.NodeOutput(sampling.sample(stages, positive, negative, latent, schedule, seed))

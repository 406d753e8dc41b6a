"""The sampler."""

from comfy_api.latest import io

from ..host.sampling import presets, sampling
from ..host.sampling.experts import Expert, experts
from ..host.sampling.schedule import TO_THE_END
from ..wan_model import solvers
from .inputs import fraction
from .search import aliases


def schedule_inputs() -> list:
    """Return the inputs for the solver, its schedule and the noise."""
    return [
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
            options=list(solvers.SAMPLERS),
            default="unipc",
            tooltip="unipc and dpmpp are the official solvers, of second order, as is res_multistep. euler and lcm, "
            "which draws new noise in every step, suit models distilled to few steps.",
        ),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=0xFFFFFFFFFFFFFFFF,
            control_after_generate=True,
            tooltip="Seed of the noise: the same seed and settings give the same clip.",
        ),
    ]


def denoise_input() -> io.Float.Input:
    """Return the input for how much of a connected clip is sampled anew."""
    return io.Float.Input(
        "denoise",
        default=1.0,
        min=0.01,
        max=1.0,
        step=0.01,
        tooltip="1 samples a new clip. Lower values start from the connected clip: 0.3 changes it little.",
    )


def expert_inputs() -> list:
    """Return the inputs for the second expert of A14B."""
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
            tooltip="Guidance of the low-noise expert. 0 uses the same value as guidance. Official: 3 after 4 for "
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


def preset_input(default: str) -> io.Combo.Input:
    """Return the input for the settings of a distilled model."""
    return io.Combo.Input(
        "preset",
        options=list(presets.CHOICES),
        default=default,
        optional=True,
        tooltip="The authors' settings for a model or LoRA distilled to few steps; they replace steps, guidance, "
        "shift and solver. auto takes the one that fits the file names, and changes nothing where none does.",
    )


def few_step_inputs() -> list:
    """Return the inputs for presets, explicit sigmas and parts of a schedule."""
    return [
        preset_input(presets.NONE),
        io.Sigmas.Input(
            "sigmas",
            optional=True,
            tooltip="Noise levels from a scheduler or SplitSigmas node, within 1 to 0. They replace steps, shift and "
            "denoise.",
        ),
        io.Int.Input(
            "start_step",
            default=0,
            min=0,
            max=TO_THE_END,
            optional=True,
            tooltip="The first step to run. Above 0 it continues the latent of a sampler that ended there.",
        ),
        io.Int.Input(
            "end_step",
            default=TO_THE_END,
            min=1,
            max=TO_THE_END,
            optional=True,
            tooltip="The step at which the run ends. Below steps, the latent keeps its remaining noise for "
            "another sampler.",
        ),
        io.Boolean.Input(
            "add_noise",
            default=True,
            optional=True,
            tooltip="Off for a latent that still holds the noise of ComfyUI's own sampler. Latents of "
            "WanSampler need no change here.",
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
            **aliases(
                *("ksampler", "ksampler advanced", "unipc", "dpm++", "euler", "lcm", "res_multistep", "video to video"),
                *("high noise low noise", "lightx2v", "lightning", "few steps"),
                *("wan 2.2 i2v 4 steps", "wan 2.2 t2v 4 steps", "wan 2.1 t2v 4 steps", "wan 2.1 i2v 4 steps"),
            ),
            description="Samples a clip with the official solvers and noise schedule of Wan.",
            inputs=[
                io.Model.Input("model", tooltip="A Wan model, with or without LoRAs and patches."),
                io.Conditioning.Input("positive", tooltip="What the clip should show."),
                io.Conditioning.Input(
                    "negative",
                    optional=True,
                    lazy=True,
                    tooltip="What it should not show. Not needed, and not encoded, at guidance 1.",
                ),
                io.Latent.Input("latent", tooltip="An empty latent, or an encoded clip (with denoise below 1)."),
                *schedule_inputs(),
                denoise_input(),
                *expert_inputs(),
                *few_step_inputs(),
            ],
            outputs=[
                io.Latent.Output(tooltip="The finished clip, for a decoder."),
                io.Sigmas.Output(display_name="sigmas", tooltip="The noise levels of the run, for another sampler."),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.unique_id],
        )

    @classmethod
    def choice(
        cls,
        model,
        steps,
        guidance,
        shift,
        solver,
        low_noise_model=None,
        low_noise_guidance=0.0,
        preset=presets.NONE,
        sigmas=None,
        **_,
    ) -> presets.Choice:
        """Return the preset choice for these inputs of the node."""
        names, told = [], None
        for socket, found in (("model", model), ("low_noise_model", low_noise_model)):
            if found is not None:
                names += presets.file_names(found)
                names += presets.names_upstream(cls.hidden.prompt, cls.hidden.unique_id, socket)
        if low_noise_model is None:
            told = presets.told_by_model(model, names)
        widgets = presets.Settings(steps, guidance, low_noise_guidance, shift, solver, sigmas)
        return presets.Choice(preset, widgets, names, low_noise_model is not None, told)

    @classmethod
    def stages(cls, choice: presets.Choice, model, low_noise_model=None, boundary=0.0, **_) -> list[Expert]:
        """Return the models of a run with these inputs of the node."""
        settings = choice.settings
        return experts(model, settings.guidance, low_noise_model, settings.low_noise_guidance, boundary)

    @classmethod
    def check_lazy_status(cls, **inputs) -> list[str]:
        """Return the negative prompt's input if it is connected, not computed yet and read by one of the models."""
        waits = "negative" in inputs and inputs["negative"] is None
        if not waits:
            return []
        stages = cls.stages(cls.choice(**inputs), **inputs)
        return ["negative"] if any(stage.reads_negative for stage in stages) else []

    @classmethod
    def execute(
        cls,
        positive,
        latent,
        seed,
        denoise,
        negative=None,
        start_step=0,
        end_step=TO_THE_END,
        add_noise=True,
        **inputs,
    ) -> io.NodeOutput:
        choice = cls.choice(**inputs)
        choice.report()
        schedule = choice.settings.schedule(denoise if inputs.get("sigmas") is None else 1.0)
        schedule = schedule.part(start_step, end_step)
        stages = cls.stages(choice, **inputs)
        out = sampling.sample(stages, positive, negative, latent, schedule, seed, add_noise)
        return io.NodeOutput(out, schedule.sigmas)

"""Several cards for one result."""

from comfy_api.latest import io

from ..host.parallel import devices as host_devices
from ..host.parallel import frames, run, sharding
from .search import aliases


class WanParallel(io.ComfyNode):
    """MODEL whose runs are shared by several devices."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WanParallel",
            display_name="Wan Parallel",
            category="Wan/sampling",
            **aliases("multi gpu", "multigpu", "several cards", "ulysses", "sequence parallel", "raylight", "xdit"),
            description=(
                "Shares each step of a run between several cards, so that one clip is made faster. Put it last, after "
                "LoRAs and patches. With one card it changes nothing."
            ),
            inputs=[
                io.Model.Input("model", tooltip="A model of WanModelLoader, with or without LoRAs."),
                io.String.Input(
                    "devices",
                    default=host_devices.AUTO,
                    tooltip="auto takes all cards of the kind of ComfyUI's own. Or their numbers, such as 0,1, "
                    "beginning with ComfyUI's own. cpu x2 runs two processes on the CPU, for a trial. Another machine "
                    "follows with its cards: 0,1 + 192.168.1.5: 0,1.",
                ),
                io.Combo.Input(
                    "share",
                    options=list(run.WAYS),
                    default=run.AUTO,
                    tooltip="auto gives the two prompts of guidance to half of the cards each, where a step takes both "
                    "at once, and shares the tokens of the clip otherwise. tokens always shares the tokens.",
                ),
                io.Combo.Input(
                    "weights",
                    options=list(sharding.WEIGHTS),
                    default=sharding.REPLICA,
                    optional=True,
                    tooltip="replica keeps all weights on each card. sharded keeps a part of the blocks on each, and "
                    "the cards send each other the rest while they compute: for a model that does not fit one card.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="The model, for WanSampler and KSampler.")],
        )

    @classmethod
    def validate_inputs(cls, devices):
        try:
            host_devices.parse(devices)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, model, devices, share, weights=sharding.REPLICA) -> io.NodeOutput:
        return io.NodeOutput(run.apply(model, host_devices.parse(devices), share, weights))


class WanParallelVAE(io.ComfyNode):
    """VAE whose decodes are shared by several devices."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WanParallelVAE",
            display_name="Wan Parallel VAE",
            category="Wan/vae",
            **aliases("multi gpu", "multigpu", "several cards", "parallel vae", "raylight", "distvae"),
            description=(
                "Shares the decoding of a clip between several cards: each decodes a part of every frame, with nothing "
                "blended. With one card it changes nothing."
            ),
            inputs=[
                io.Vae.Input("vae", tooltip="A VAE of WanVAELoader."),
                io.String.Input(
                    "devices",
                    default=host_devices.AUTO,
                    tooltip="As in WanParallel, and the same as there: auto, the numbers of cards such as 0,1, or "
                    "cpu x2, and other machines.",
                ),
            ],
            outputs=[io.Vae.Output(tooltip="The VAE, for WanVAEDecode, WanVAEDecodeToVideo and VAE Decode.")],
        )

    @classmethod
    def validate_inputs(cls, devices):
        return WanParallel.validate_inputs(devices)

    @classmethod
    def execute(cls, vae, devices) -> io.NodeOutput:
        return io.NodeOutput(frames.apply(vae, host_devices.parse(devices)))

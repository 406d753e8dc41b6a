"""Patches of sampling: the step cache and guidance."""

from comfy_api.latest import io

from ..host.observe import preview
from ..host.sampling import guidance, step_cache
from .inputs import fraction
from .search import aliases


class WanStepCache(io.ComfyNode):
    """MODEL that reuses its last prediction while it changes little."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WanStepCache",
            display_name="Wan Step Cache",
            category="Wan/sampling",
            **aliases("teacache", "magcache", "easycache", "faster"),
            description=(
                "Skips the network in steps where its prediction is estimated to change less than a budget, and "
                "reuses the last prediction. The result changes little; the log reports the calls saved. For "
                "WanSampler and KSampler; use one node for each expert of A14B."
            ),
            inputs=[
                io.Model.Input("model", tooltip="A Wan model, with or without LoRAs and patches."),
                io.Combo.Input(
                    "criterion",
                    options=list(step_cache.CRITERIA),
                    default="easycache",
                    tooltip="What the change is estimated from: easycache the movement of the latent, teacache the "
                    "time embedding, magcache the magnitude of the prediction. All are measured during the run.",
                ),
                fraction("budget", 0.1, "Largest estimated change of a reused prediction. 0 is off."),
                fraction(
                    "start_percent", 0.15, "Fraction of the run before the first step that may be skipped.", step=0.01
                ),
                fraction("end_percent", 0.95, "Fraction of the run after which no step is skipped.", step=0.01),
            ],
            outputs=[io.Model.Output(tooltip="The model with the step cache.")],
        )

    @classmethod
    def execute(cls, model, criterion, budget, start_percent, end_percent) -> io.NodeOutput:
        settings = step_cache.Settings(criterion, budget, start_percent, end_percent)
        return io.NodeOutput(step_cache.apply(model, settings, preview.where()))


class WanGuidance(io.ComfyNode):
    """MODEL with guidance limited to an interval of noise levels, and with CFG-Zero*."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WanGuidance",
            display_name="Wan Guidance",
            category="Wan/sampling",
            **aliases("cfg", "cfg-zero", "guidance interval"),
            description=(
                "Sets the noise levels and the form of classifier-free guidance; its scale is set in the sampler. "
                "Outside these noise levels a step takes half the time. For WanSampler and KSampler; use one node "
                "for each expert of A14B."
            ),
            inputs=[
                io.Model.Input("model", tooltip="A Wan model, with or without LoRAs and patches."),
                fraction("sigma_start", 1.0, "Highest noise level with guidance. 1 is the start of a run."),
                fraction(
                    "sigma_end",
                    0.0,
                    "Lowest noise level with guidance. Below it only the positive prompt is evaluated.",
                ),
                io.Boolean.Input(
                    "cfg_zero",
                    default=True,
                    tooltip="CFG-Zero*: scales the negative prediction so that guidance only adds the difference in "
                    "direction.",
                ),
                io.Int.Input(
                    "zero_steps",
                    default=0,
                    min=0,
                    max=10,
                    tooltip="First steps to skip, as CFG-Zero* does with 1 or 2 if the model's first predictions are "
                    "poor. 0 skips none.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="The model with this guidance.")],
        )

    @classmethod
    def execute(cls, model, sigma_start, sigma_end, cfg_zero, zero_steps) -> io.NodeOutput:
        return io.NodeOutput(guidance.apply(model, guidance.Settings(sigma_start, sigma_end, cfg_zero, zero_steps)))

"""LoRAs on a model."""

from comfy_api.latest import io

from ..host import files
from ..host.messages import say
from ..host.model import lora as host_lora
from ..host.observe import preview, report
from .search import aliases

FOLDER, NONE = "loras", "none"
SLOTS = (1, 2, 3, 4)


class WanLoraLoader(io.ComfyNode):
    """MODEL with up to four LoRAs."""

    @classmethod
    def define_schema(cls):
        options = [NONE, *files.names(FOLDER)]
        slots = (
            (
                io.Combo.Input(
                    f"lora_{slot}",
                    options=options,
                    default=NONE,
                    tooltip="A LoRA for this size of Wan in models/loras, from any trainer.",
                ),
                io.Float.Input(
                    f"strength_{slot}",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.05,
                    tooltip="Strength of the LoRA. 0 leaves the model unchanged.",
                ),
            )
            for slot in SLOTS
        )
        return io.Schema(
            node_id="WanLoraLoader",
            display_name="Wan LoRA Loader",
            category="Wan/loaders",
            **aliases("lora", "load lora", "lightx2v"),
            description=(
                "Adds LoRAs to a Wan model and says how many of their keys matched. For Wan 2.2 A14B use one node for "
                "each expert, or the same for both. Changing a strength does not reload the model."
            ),
            inputs=[
                io.Model.Input("model", tooltip="A Wan model, from WanModelLoader or another loader."),
                *(item for slot in slots for item in slot),
            ],
            outputs=[io.Model.Output(tooltip="The model with the LoRAs.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model, **slots) -> io.NodeOutput:
        reports = []
        for slot in SLOTS:
            name, strength = slots[f"lora_{slot}"], slots[f"strength_{slot}"]
            if name != NONE and strength != 0:
                model, found = host_lora.apply(model, files.path(FOLDER, name), strength)
                reports.append(found)
        say(cls.hidden.unique_id, "\n".join(map(str, reports)) or "no LoRA")
        report.send(preview.where(), loras=[found.counts() for found in reports])
        return io.NodeOutput(model)

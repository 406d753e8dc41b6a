"""Video of any length, written while it is made."""

from comfy_api.latest import InputImpl, io, ui

from ..host.observe.growing import saved_as
from ..host.sampling import orders, presets, video_run
from ..host.sampling.experts import Expert
from ..wan_model.causal import parse_prompts
from ..wan_model.variants import NEGATIVE_PROMPT
from .inputs import prompt
from .latent import side_inputs
from .sampler import preset_input, schedule_inputs
from .search import aliases

OF_MODEL = orders.OF_MODEL


def memory_inputs() -> list:
    """Return the inputs for what a causal model remembers."""
    return [
        io.Int.Input(
            "window",
            default=OF_MODEL,
            min=OF_MODEL,
            max=1000,
            optional=True,
            tooltip="Latent frames that the model sees at once, those that it makes included: memory and time of a "
            "block grow with it. -1 is the model's own.",
        ),
        io.Int.Input(
            "sink",
            default=OF_MODEL,
            min=OF_MODEL,
            max=1000,
            optional=True,
            tooltip="First latent frames that are never forgotten: they hold colour and scene over minutes. -1 is the "
            "model's own.",
        ),
    ]


def file_inputs() -> list:
    """Return the inputs for the file of the video."""
    return [
        io.String.Input(
            "filename_prefix",
            default="video/WanStream",
            tooltip="Name of the file in the output folder, as in SaveVideo. It grows block by block and can be played "
            "at any moment.",
        ),
        io.Boolean.Input(
            "resume",
            default=True,
            tooltip="On: after a crash, the next run goes on with the newest unfinished video of this name, with its "
            "seed; the state for it lies beside the file. Off: every run begins a new file and saves no state.",
        ),
    ]


def scene_inputs() -> list:
    """Return the inputs for what the video shows, its size and its length."""
    return [
        prompt(
            "prompts",
            'What the video shows. For prompts over time: "0 s: a cat sleeps; 12 s: the cat wakes up".',
        ),
        prompt("negative", "What the video must not show. Guidance 1 ignores it.", NEGATIVE_PROMPT),
        *side_inputs(),
        io.Float.Input(
            "seconds",
            default=30.0,
            min=0.0,
            max=1e6,
            step=1.0,
            tooltip="Length of the video, rounded up to whole blocks. 0 goes on until Cancel.",
        ),
    ]


class WanStream(io.ComfyNode):
    """VIDEO of any length from a causal model, on disk while it is made."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WanStream",
            display_name="Wan Stream",
            category="Wan/sampling",
            **aliases(
                "endless video", "long video", "causal", "self-forcing", "longlive", "autoregressive", "streaming"
            ),
            description=(
                "Makes a video of any length with a causal model, in the memory of a few frames: each block of frames "
                "is decoded and written to the output folder as soon as it is sampled. Cancel ends the video there."
            ),
            inputs=[
                io.Model.Input("model", tooltip="A causal model (Self-Forcing, LongLive) from WanModelLoader."),
                io.Clip.Input("clip", tooltip="umT5, which reads the prompts."),
                io.Vae.Input("vae", tooltip="The VAE of the model, from WanVAELoader."),
                *scene_inputs(),
                *schedule_inputs(),
                *file_inputs(),
                preset_input(presets.AUTO),
                *memory_inputs(),
                io.Image.Input(
                    "start_image",
                    optional=True,
                    tooltip="The first frame, or a clip (4n+1 frames): the video continues it.",
                ),
                io.Audio.Input(
                    "audio", optional=True, tooltip="Sound of the video, cut to its length once it is made."
                ),
            ],
            outputs=[io.Video.Output(tooltip="The video, from its file: nodes behind this one read it from the disk.")],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo, io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, prompts=None):
        """Return True, or the error for the editor. An input with a link is None here."""
        try:
            if prompts is not None:
                parse_prompts(prompts)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls,
        model,
        clip,
        vae,
        prompts,
        negative,
        width,
        height,
        seconds,
        steps,
        guidance,
        shift,
        solver,
        seed,
        filename_prefix,
        resume,
        preset=presets.AUTO,
        window=OF_MODEL,
        sink=OF_MODEL,
        start_image=None,
        audio=None,
    ) -> io.NodeOutput:
        names = presets.file_names(model)
        names += presets.names_upstream(cls.hidden.prompt, cls.hidden.unique_id, "model")
        widgets, told = presets.Settings(steps, guidance, 0.0, shift, solver), presets.told_by_model(model, names)
        choice = presets.Choice(preset, widgets, names, is_pair=False, told=told)
        choice.report()
        stage = Expert(model, choice.settings.guidance)
        order = orders.make(
            stage,
            choice.settings.schedule(1.0),
            vae,
            orders.Scene(clip, prompts, negative, width, height, start_image),
            seconds,
            seed,
            {"window": window, "sink": sink},
        )
        metadata = {**(cls.hidden.extra_pnginfo or {}), "prompt": cls.hidden.prompt}
        path = video_run.produce(order, filename_prefix, resume, metadata, audio)
        saved = saved_as(path)
        result = ui.SavedResult(saved["filename"], saved["subfolder"], io.FolderType.output)
        return io.NodeOutput(InputImpl.VideoFromFile(str(path)), ui=ui.PreviewVideo([result]))

"""Every node of the host that takes a MODEL means the same on ours as on the host's own class.

The nodes are found in the running host. Each is run with our MODEL and with the host's class, both from one file in
float32, and what comes of it is compared: of a node that gives a MODEL, 4 steps of the host's KSampler. What a node
refuses on the host's class it must refuse on ours, in the same words. `pytest -v` ends with the table of all.
"""

import asyncio
from pathlib import Path

import beside
import folder_paths
import node_inputs
import pytest
import torch
from safetensors.torch import load_file

import nodes

asyncio.run(nodes.init_builtin_extra_nodes())

BOUND = 1e-3  # of the difference, relative to what the host's class gives
CHANGED = 1e-4  # a patch whose result differs by more from the plain one has an effect
OUR_NAMES = {"HostDiT": "WanModel", "MappedPatcher": "ModelPatcher"}  # the host's classes that these stand for
WITHOUT_EFFECT = {  # on the host's Wan, and so on ours
    # what other networks read: U-Nets, other families, attention patches of the form that Wan never called
    *("ChromaRadianceOptions", "HiDreamO1PatchSeamSmoothing", "HyperTile", "HypernetworkLoader"),
    *("LTXVModalityGuidance", "LTXVSpatioTemporalGuidance", "NAGuidance", "PatchModelAddDownscale"),
    *("PerturbedAttentionGuidance", "TomePatchModel", "UNetCrossAttentionMultiply", "UNetSelfAttentionMultiply"),
    *("UNetTemporalAttentionMultiply", "USOStyleReference", "WanAnimate2Cache"),
    "ARVideoI2V",  # only the sampler ar_video reads it
    # the same result by other means, or nothing at all
    *("ModelAttentionBackend", "ModelComputeDtype", "MultiGPU_WorkUnits", "SelectModelDevice", "TorchCompileModel"),
    "wanBlockSwap",
}
RUN = {  # node -> how its MODEL is sampled, where not as usual
    "TorchCompileModel": {"steps": 1},  # it is compiled anew in each
    "WanInfiniteTalkToVideo": {"cfg": 1.0},  # the host's class takes no two prompts at once with it
}


def takes_a_model(node: str) -> bool:
    """Whether `node` is one of the host's and a MODEL is among its inputs."""
    own = getattr(nodes.NODE_CLASS_MAPPINGS[node], "RELATIVE_PYTHON_MODULE", "nodes").startswith("custom_nodes")
    return not own and "MODEL" in [kind for kind, _ in node_inputs.inputs_of(node).values()]


NODES = sorted(filter(takes_a_model, nodes.NODE_CLASS_MAPPINGS))


@pytest.fixture(scope="module")
def load(room, models):
    """Function (kind, width, seed) -> the pair of that file."""
    return lambda *file: beside.load(room("host.model.loading"), beside.write(models, *file))


@pytest.fixture(scope="module")
def small(load):
    """Two pairs of the usual size."""
    return load("wan2.1_t2v"), load("wan2.1_t2v", 256, 7)


@pytest.fixture(scope="module")
def talking(load):
    """The pair that InfiniteTalk is for, where the host has it."""
    return load("wan2.1_i2v", node_inputs.TALK_WIDTH) if "WanInfiniteTalkToVideo" in NODES else None


@pytest.fixture(scope="module")
def links(models):
    """Function from a node to what it gets for each type of link."""
    given = node_inputs.links(models)
    patches = node_inputs.model_patches(models) if "WanUni3CControlnetApply" in NODES else {None: None}
    return lambda node: given | {"MODEL_PATCH": patches.get(node, patches[None])}


@pytest.fixture(scope="module")
def plain(small):
    """The result of each model without a patch."""
    with torch.inference_mode():
        return small[0].each(lambda model: beside.sample(model, *beside.prompts()))


@pytest.fixture(scope="module")
def table(pytestconfig):
    """Rows of text, one a node, which are shown at the end."""
    rows = []
    yield rows
    if pytestconfig.get_verbosity() > 0:
        pytestconfig.pluginmanager.get_plugin("terminalreporter").write_line("\n".join(["", *rows]))


@pytest.fixture(scope="module", autouse=True)
def nothing_saved():
    """Leaves no weights of other tests in the output folder."""
    saved_weights()


def saved_weights() -> torch.Tensor:
    """All weights in the files that a node has saved, which are removed."""
    tensors = {}
    for file in sorted(Path(folder_paths.get_output_directory()).rglob("*.safetensors")):
        tensors |= load_file(file)
        file.unlink()
    return flat(tensors)


def flat(value: object) -> torch.Tensor:
    """All numbers in `value`, in the order of their names, as float32 (n,)."""
    if isinstance(value, dict):
        value = [value[name] for name in sorted(value)]
    if isinstance(value, list | tuple):
        return torch.cat([torch.empty(0), *map(flat, value)])
    return torch.as_tensor(value).flatten().float().clone()


def shown(node: str, outputs: tuple, model) -> torch.Tensor:
    """One tensor that tells what `node` gave: what is sampled with it, the weights it saved, or the numbers."""
    given = {}
    for kind, output in zip(nodes.NODE_CLASS_MAPPINGS[node].RETURN_TYPES, outputs, strict=False):
        given.setdefault(kind, []).append(output)
    if "MODEL" in given:
        clip = given.get("LATENT", [beside.latent()])[0]
        if node == "DifferentialDiffusion":
            clip["noise_mask"] = torch.linspace(0, 1, 80).expand(1, 64, 80)
        return beside.sample(given["MODEL"][0], *given.get("CONDITIONING", beside.prompts()), clip, **RUN.get(node, {}))
    if "GUIDER" in given or "SAMPLER" in given:
        return sample_with(model, **{kind.lower(): output[0] for kind, output in given.items()})
    return flat(outputs) if given else saved_weights()


def sample_with(model, guider=None, sampler=None) -> torch.Tensor:
    """The latent that SamplerCustomAdvanced makes with what a node gave, and the usual for the other."""
    positive, negative = beside.prompts()
    return beside.run(
        "SamplerCustomAdvanced",
        noise=beside.run("RandomNoise", noise_seed=4)[0],
        guider=guider or beside.run("CFGGuider", model=model, positive=positive, negative=negative, cfg=4.0)[0],
        sampler=sampler or beside.run("KSamplerSelect", sampler_name="euler")[0],
        sigmas=torch.tensor([1.0, 0.8, 0.4, 0.0]),
        latent_image=beside.latent(),
    )[0]["samples"]


def outcome(node: str, model, other, links: dict) -> torch.Tensor | str:
    """Return the result of `node` with `model` (and `other` if it takes two) as `shown`, or the error."""
    torch.manual_seed(0)  # what is trained begins at random

    def run():
        return shown(node, beside.run(node, **node_inputs.arguments(node, model, other, links)), model)

    return beside.attempt(run)


@pytest.mark.parametrize("node", NODES)
def test_a_node_means_the_same(node, small, talking, links, plain, table, relative_error):
    pair, second = (talking, talking) if node == "WanInfiniteTalkToVideo" else small
    ours = outcome(node, pair.ours, second.ours, links(node))
    theirs = outcome(node, pair.theirs, second.theirs, links(node))
    if isinstance(ours, str) or isinstance(theirs, str):
        assert in_the_hosts_words(ours) == theirs
        table.append(f"{node}: refused by both, {theirs.splitlines()[0]}")
    elif not theirs.any():
        assert torch.equal(ours, theirs)
        table.append(f"{node}: nothing from both")
    else:
        difference = relative_error(ours, theirs)
        assert difference < BOUND
        table.append(f"{node}: {difference:.1e} apart")
        if node not in RUN and "MODEL" in nodes.NODE_CLASS_MAPPINGS[node].RETURN_TYPES:
            changes = [relative_error(*of) for of in ((ours, plain.ours), (theirs, plain.theirs))]
            table[-1] += f", changed by {changes[0]:.1e} and {changes[1]:.1e}"
            assert [change > CHANGED for change in changes] == 2 * [node not in WITHOUT_EFFECT]


def in_the_hosts_words(outcome: torch.Tensor | str) -> torch.Tensor | str:
    """An error with the host's class in the place of ours."""
    if isinstance(outcome, str):
        for own, meant in OUR_NAMES.items():
            outcome = outcome.replace(own, meant)
    return outcome

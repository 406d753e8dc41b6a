"""A14B's two experts take the memory of one."""

import sys
import threading
import time
from pathlib import Path

import comfy.model_management
import pytest
import torch
from safetensors.torch import save_file

from wan_model.dit.config import DiTConfig
from wan_model.dit.model import WanDiT

CONFIG = DiTConfig("t2v", dim=1024, ffn_dim=4096, heads=8, layers=4, in_dim=16, out_dim=16, text_dim=64)
STEPS = 4


@pytest.fixture(scope="module")
def experts(tmp_path_factory, room):
    """Two MODELs from files of about 320 MB each, and the bytes of one file."""
    folder, models = tmp_path_factory.mktemp("experts"), []
    for name in ("high_noise", "low_noise"):
        dit = WanDiT(CONFIG, device="meta").to_empty(device="cpu")
        generator = torch.Generator().manual_seed(len(models))
        for parameter in dit.parameters():
            parameter.data.normal_(generator=generator).mul_(0.02)
        path = folder / f"{name}.safetensors"
        save_file(dit.state_dict(), path)
        del dit, parameter
        models.append(room("host.model.loading").load(str(path), "float32"))
    return *models, path.stat().st_size


class PeakMemory:
    """Context manager: `grown` is how much anonymous memory this process had more, at most, than at the start."""

    def __enter__(self):
        self.start = self.peak = self.now()
        self.running = True
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self

    def __exit__(self, *error):
        self.running = False
        self.thread.join()
        self.grown = self.peak - self.start

    def watch(self):
        while self.running:
            self.peak = max(self.peak, self.now())
            time.sleep(0.002)

    @staticmethod
    def now() -> int:
        status = Path("/proc/self/status").read_text()
        return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("RssAnon")))


def run(run_node, high, **inputs):
    text = [[torch.randn(1, 32, CONFIG.text_dim, generator=torch.Generator().manual_seed(9)), {}]]
    settings = dict(steps=STEPS, guidance=1.0, shift=5.0, solver="unipc", seed=1, denoise=1.0)
    latent = {"samples": torch.zeros(1, 16, 2, 16, 16)}
    given = settings | inputs
    return run_node("WanSampler", model=high, positive=text, negative=text, latent=latent, **given)[0]


@pytest.fixture
def loaded(experts, monkeypatch):
    """Which of the experts were resident after each load."""
    seen, load = [], comfy.model_management.load_models_gpu
    ids = {id(expert.model) for expert in experts[:2]}

    def watched(*args, **kwargs):
        result = load(*args, **kwargs)
        resident = {id(entry.model.model) for entry in comfy.model_management.current_loaded_models if entry.model}
        seen.append(resident & ids)
        return result

    monkeypatch.setattr(comfy.model_management, "load_models_gpu", watched)
    return seen


def test_the_first_expert_is_gone_before_the_second_comes(run_node, experts, loaded):
    high, low, _ = experts
    run(run_node, high, low_noise_model=low, boundary=0.9)
    assert [{id(high.model)}, {id(low.model)}] == [entry for entry in loaded if entry]


@pytest.mark.parametrize("boundary, denoise, alone", [(0.875, 0.2, 1), (0.01, 1.0, 0)])
def test_an_expert_without_a_step_is_not_loaded(run_node, experts, loaded, boundary, denoise, alone):
    high, low, _ = experts
    comfy.model_management.unload_all_models()
    both = run(run_node, high, low_noise_model=low, boundary=boundary, denoise=denoise)["samples"]
    assert {id(experts[alone].model)} == set().union(*loaded)
    assert torch.equal(both, run(run_node, experts[alone], denoise=denoise)["samples"])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_two_experts_take_the_memory_of_one(run_node, experts):
    high, low, size = experts
    run(run_node, high)  # what the first run of a process allocates once
    with PeakMemory() as one:
        run(run_node, high)
    with PeakMemory() as two:
        result = run(run_node, high, low_noise_model=low, boundary=0.9)["samples"]
    assert result.isfinite().all() and result.std() > 0
    assert two.grown < one.grown + 0.2 * size

"""How often the host waits for its device, counted on a simulated one: `python3 dev.py bench syncs` prints it."""

from types import SimpleNamespace

import pytest
import torch
from card import simulated, syncs


@pytest.fixture
def runs(room, models, run_node):
    """The objects of the nodes, loaded anew: counting puts their weights on a device that is then gone."""
    model = room("host.model.loading").load(str(models / syncs.MODEL), "float32")
    return syncs.Runs(run_node, model, room("host.vae.vae").load(str(models / syncs.VAE)))


def count(runs):
    with syncs.simulated_card() as card:
        return syncs.counted(runs, card)


def test_a_step_waits_once_and_a_block_never(runs):
    found = count(runs)
    assert syncs.beyond(found) == []
    assert [place.split(":")[0] for _, place in found["a sampling step"]] == ["host/model/dit.py"]


@pytest.fixture
def client(room, monkeypatch):
    """A client that listens to previews: its events and the application that keeps the sheets."""
    preview, latest = room("host.observe.preview"), room("host.observe.latest")
    app = {latest.PREVIEW: latest.Latest()}
    server = SimpleNamespace(app=app, client_id="editor", events=[])
    server.send_sync = lambda *event: server.events.append(event)
    monkeypatch.setattr(preview.server, "running", lambda: server)
    monkeypatch.setattr(preview, "where", lambda: {"node": "1", "prompt_id": "2"})
    return SimpleNamespace(events=server.events, latest=app[latest.PREVIEW])


def test_previews_and_guidance_add_no_wait(runs, run_node, client):
    given = {"sigma_start": 1.0, "sigma_end": 0.1, "cfg_zero": True, "zero_steps": 1}
    model = run_node("WanGuidance", model=runs.model, **given)[0]
    runs = syncs.Runs(run_node, model, runs.vae)
    with syncs.simulated_card() as card:
        found = syncs.counted(runs, card)
        assert syncs.beyond(found) == []
        assert client.latest.shown.jpeg().startswith(b"\xff\xd8")  # a JPEG
    assert len(client.events) == 2 * 3 + 6 and len(found["a sampling step"]) == 1


@pytest.mark.parametrize(
    "where, name, broken, item",
    [
        ("wan_model.dit.rope", "send", lambda x, device: x.to(device), "a sampling step"),
        ("host.model.dit", "is_finite", lambda v: bool(v.isfinite().all()) and bool(v.sum() < 1e9), "a sampling step"),
        ("wan_model.vae.stream", "send", lambda x, device: x.to(device), "a decoded block"),
        ("host.vae.vae", "off_device", lambda chunks, device, to: (x.to(to) for x in chunks), "an encoded block"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wait_more_is_found(runs, room, monkeypatch, where, name, broken, item):
    monkeypatch.setattr(room(where), name, broken)
    assert any(f"waits in {item}" in line for line in syncs.beyond(count(runs)))


@pytest.mark.parametrize(
    "waits",
    [
        lambda x: bool((x > 0).any()),
        lambda x: x.sum().item(),
        lambda x: x[x > 0],
        lambda x: x[:, [0, 1]],
        lambda x: x.nonzero(),
        lambda x: x.masked_select(x > 0),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: x.new_tensor([1.0]),
        lambda x: torch.tensor([1.0], device=x.device),
        lambda x: x.copy_(torch.ones(2, 3)),
        lambda x: torch.ones(2, 3).to(x.device),
        lambda x: torch.equal(x, x),
    ],
)
def test_what_waits_is_counted(waits):
    with simulated.simulated() as simulation:
        x = torch.rand(2, 3, device=simulated.CARD)
        assert not simulation.waits
        waits(x)
    assert len(simulation.waits) == 1


@pytest.mark.parametrize(
    "goes_on",
    [
        lambda x: x.to("cpu", non_blocking=True),
        lambda x: torch.ones(2, 3).to(x.device, non_blocking=True),
        lambda x: x.add_(1).mul(2)[:, 1].sum(),
        lambda x: x[:, torch.zeros(2, dtype=torch.long, device=x.device)],
        lambda x: torch.cat([x, x.new_full((2, 3), 4.0)]),
        lambda x: x.fill_(2).to(torch.float16),
        lambda x: torch.nn.functional.scaled_dot_product_attention(x[None], x[None], x[None]),
    ],
)
def test_what_does_not_wait_is_not(goes_on):
    with simulated.simulated() as simulation:
        result = goes_on(torch.rand(2, 3, device=simulated.CARD))
    assert simulation.waits == []
    assert type(result) in (torch.Tensor, simulated.OnCard)


def test_a_simulated_device_computes():
    with simulated.simulated():
        x = torch.arange(6.0).view(2, 3).to(simulated.CARD)
        result = torch.nn.functional.linear(x, x).cpu()
    assert torch.equal(result, torch.tensor([[5.0, 14.0], [14.0, 50.0]]))

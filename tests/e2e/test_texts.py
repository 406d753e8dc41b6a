"""Help pages, tooltips and languages: one of each for everything that a node shows."""

import re
from urllib.request import urlopen

import pytest

from devtools import locales
from devtools.environment import ROOT
from devtools.host import LINK

DOCS = ROOT / "web" / "docs"
PAGES = {"en": "{}.md", "zh": "{}/zh.md"}  # as the editor looks for them


@pytest.fixture(scope="session")
def english(object_info) -> dict:
    """The texts that the server itself has of this pack's nodes."""
    texts = locales.english(object_info)
    assert len(texts) > 10
    return texts


def leaves(texts: dict) -> dict[str, str]:
    """Every text by its slash-separated keys."""
    found = {}
    for path in locales.paths(texts):
        value = texts
        for key in path.split("/"):
            value = value[key]
        found[path] = value
    return found


def test_everything_has_a_tooltip(english):
    assert [path for path, text in leaves(english).items() if not text.strip()] == []


def test_the_english_texts_are_the_nodes_own(english):
    assert locales.read("en") == english, "run `python -m devtools.locales --comfyui PATH`"


@pytest.mark.parametrize("language", locales.LANGUAGES[1:])
def test_a_language_covers_the_nodes_exactly(english, language):
    assert locales.paths(locales.read(language)) == locales.paths(english)


def test_the_chinese_texts_are_chinese(english):
    own = leaves(locales.read("zh"))
    prose = [path for path in own if path.endswith(("description", "tooltip"))]
    assert [path for path in prose if not re.search(r"[\u4e00-\u9fff]", own[path])] == []


@pytest.mark.parametrize("language", PAGES)
def test_every_node_has_a_page_that_names_its_inputs_and_outputs(english, language):
    texts = locales.read(language)
    for node in english:
        page = (DOCS / PAGES[language].format(node)).read_text(encoding="utf-8")
        assert page.startswith(f"# {texts[node]['display_name']}\n")
        rows = set(re.findall(r"^\| `(\w+)`", page, re.MULTILINE))
        assert rows == set(english[node]["inputs"]), node
        for output in texts[node]["outputs"].values():
            assert f"| {output['name']} |" in page, node
        pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", page)
        assert pictures and all((DOCS / picture).exists() for picture in pictures), node


def test_no_page_is_left_of_a_node_that_went(english):
    assert {path.name for path in DOCS.iterdir() if path.is_dir()} - {"pictures"} == set(english)
    assert {path.stem for path in DOCS.glob("*.md")} - {"migration"} == set(english)


def test_the_migration_page_names_nodes_that_there_are(english, object_info):
    core, wrapper = (DOCS / "migration.md").read_text(encoding="utf-8").split("## WanVideoWrapper")
    assert set(re.findall(r"\]\((\w+)\.md\)", core + wrapper)) == set(english) - {"WanModelInfo"}
    replaced = re.findall(r"^\| ([^|`]+) \|", core, re.MULTILINE)
    named = {name for row in replaced for name in re.findall(r"\b[A-Z]\w{7,}\b", row)} - {"Diffusion"}
    assert named and named <= set(object_info)


def test_the_server_hands_out_pages_and_languages(english, client, server):
    assert {"en", "zh"} <= set(client.get("/i18n"))
    assert client.get("/i18n")["zh"]["nodeDefs"]["WanSampler"] == locales.read("zh")["WanSampler"]
    for page in PAGES.values():
        with urlopen(f"{server.url}/extensions/{LINK}/docs/{page.format('WanSampler')}") as reply:
            assert reply.read().startswith(b"# Wan ")

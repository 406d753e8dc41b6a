"""Help pages, tooltips and languages: one of each for everything that a node shows."""

import ast
import json
import re
from string import Formatter
from urllib.request import urlopen

import pytest

from devtools import locales
from devtools.environment import ROOT
from devtools.host import LINK

DOCS = ROOT / "web" / "docs"
PAGES = {"en": "{}.md", "zh": "{}/zh.md"}  # as the editor looks for them


def messages() -> dict[str, list[tuple[str, set[str]]]]:
    """Code to (English sentence, names of the values) of every `Message` that the pack makes."""
    found = {}
    for room in ("wan_model", "host", "nodes"):
        for path in (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Message":
                    code, sentence = map(ast.literal_eval, node.args)
                    found.setdefault(code, []).append((sentence, {value.arg for value in node.keywords}))
    assert len(found) > 10
    return found


def words(language: str) -> dict[str, dict[str, str]]:
    """Texts of the editor's extension in `language`, and its wording of the server's messages."""
    return json.loads((ROOT / "locales" / language / "main.json").read_text(encoding="utf-8"))["wanStream"]


def values(sentence: str) -> set[str]:
    """The names of the values in `sentence`."""
    return {name for _, name, _, _ in Formatter().parse(sentence) if name is not None}


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


def test_a_message_stands_once_and_names_its_values():
    for code, made in messages().items():
        assert len(made) == 1, f"{code} is made in {len(made)} places"
        sentence, given = made[0]
        assert values(sentence) == given, code


@pytest.mark.parametrize("language", locales.LANGUAGES[1:])
def test_a_language_words_every_message_and_no_other(language):
    known = messages()
    worded = words(language)["messages"]
    assert worded.keys() == known.keys()
    assert {code: values(text) for code, text in worded.items()} == {
        code: given for code, [(_, given)] in known.items()
    }


@pytest.mark.parametrize("language", locales.LANGUAGES)
def test_a_language_has_the_words_that_the_extension_says(language):
    known = words("en")["words"]
    scripts = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "web").glob("*.js"))
    assert [key for key in known if f'"{key}"' not in scripts] == []
    assert set(re.findall(r'\bsay\("([^"]+)"', scripts)) <= known.keys()
    assert {key: values(text) for key, text in words(language)["words"].items()} == {
        key: values(text) for key, text in known.items()
    }


def test_the_server_hands_out_pages_and_languages(english, client, server):
    assert {"en", "zh"} <= set(client.get("/i18n"))
    assert client.get("/i18n")["zh"]["wanStream"] == words("zh")
    assert client.get("/i18n")["zh"]["nodeDefs"]["WanSampler"] == locales.read("zh")["WanSampler"]
    for page in PAGES.values():
        with urlopen(f"{server.url}/extensions/{LINK}/docs/{page.format('WanSampler')}") as reply:
            assert reply.read().startswith(b"# Wan ")

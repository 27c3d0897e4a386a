"""The page: well formed, self-contained, accessible by construction, and never without a reason for a gap."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser

import pytest

from reports import render
from reports.claims import ClaimSet
from reports.sections.base import View
from tests.unit.reports.conftest import HOSTILE

VOID = {"meta", "link", "br", "img", "input", "hr"}
PAGES = ("tcg", "kvm-docker", "smoke", "native-only", "hostile", "zh")


class Outline(HTMLParser):
    """Elements with their attributes, parents and text; complains about what is not closed in order."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str], tuple[str, ...]]] = []
        self.open: list[str] = []
        self.text: list[tuple[tuple[str, ...], str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}, tuple(self.open)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}, tuple(self.open)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> out of order"

    def handle_data(self, data: str) -> None:
        self.text.append((tuple(self.open), data))

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes, _ in self.elements if name == tag]


def outline(page: str) -> Outline:
    parser = Outline()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    return parser


@pytest.fixture(params=PAGES)
def page(request: pytest.FixtureRequest, pages: dict[str, str]) -> str:
    return pages[request.param]


def test_every_claim_has_exactly_one_row_and_one_section_it_links_to(page: str) -> None:
    found = outline(page)
    rows = [attributes["id"] for attributes in found.all("tr") if attributes.get("id", "").startswith("row-")]
    claims = [claim.id for claim in ClaimSet.load().claims]
    assert len(claims) == 12
    assert rows == [f"row-{claim}" for claim in claims]
    sections = [attributes["id"] for attributes in found.all("section")]
    assert [section for section in sections if section in claims] == claims
    links = {attributes["href"] for attributes in found.all("a")}
    assert {f"#{claim}" for claim in claims} <= links


def test_no_request_leaves_the_page(page: str) -> None:
    found = outline(page)
    for tag, attributes, _ in found.elements:
        for name in ("src", "href", "action", "poster", "srcset", "data", "xlink:href"):
            value = attributes.get(name, "")
            if tag == "a" and name == "href" and value.startswith("https://"):
                continue
            assert not value or value.startswith(("#", "data:")), f"<{tag} {name}={value[:80]!r}>"
        assert tag not in ("link", "iframe", "object", "embed", "base")
    for style in re.findall(r"<style>(.*?)</style>|style=\"([^\"]*)\"", page, re.DOTALL):
        assert not re.search(r"url\((?!#)|@import", "".join(style))


def test_policy_allows_our_script_alone(page: str) -> None:
    policy = next(m["content"] for m in outline(page).all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    directives = dict(directive.strip().split(" ", 1) for directive in policy.split(";"))
    script = directives.pop("script-src")
    assert re.fullmatch(r"'sha256-[A-Za-z0-9+/=]{44}'", script)
    assert directives == {
        "default-src": "'none'",
        "style-src": "'unsafe-inline'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    assert page.count("<script") == 1
    assert not [
        attributes for _, attributes, _ in outline(page).elements if any(key.startswith("on") for key in attributes)
    ]


def test_ids_are_unique_and_internal_links_lead_somewhere(page: str) -> None:
    found = outline(page)
    ids = [attributes["id"] for _, attributes, _ in found.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes, _ in found.elements:
        for name in ("href", "aria-labelledby"):
            value = attributes.get(name, "")
            if value.startswith("#") or (name == "aria-labelledby" and value):
                assert value.removeprefix("#") in ids, f"<{tag} {name}={value}>"
    for reference in re.findall(r"url\(#([^)]+)\)", page):
        assert reference in ids


def test_every_image_has_its_finding_as_text(page: str) -> None:
    for attributes in outline(page).all("svg"):
        if attributes.get("aria-hidden") != "true":
            assert attributes["role"] == "img"
            match = re.search(rf'<title id="{attributes["aria-labelledby"]}">([^<]+)</title>', page)
            assert match is not None
            assert len(match[1]) > 20
    assert "@FINDING@" not in page
    assert outline(page).all("img") == []


def test_every_table_has_a_caption_and_scopes(page: str) -> None:
    found = outline(page)
    assert page.count("<table") == page.count("<caption") > 5
    heads = [(attributes, parents) for tag, attributes, parents in found.elements if tag == "th"]
    assert heads
    for attributes, parents in heads:
        assert attributes["scope"] == ("col" if "thead" in parents else "row")
    assert re.findall(r"<caption[^>]*>\s*</caption>", page) == []


def test_no_cell_is_blank_and_no_figure_is_not_a_number(page: str) -> None:
    assert re.findall(r"<t[dh][^>]*>\s*(?:<span[^>]*>\s*</span>)?\s*</t[dh]>", page) == []
    visible = [text for parents, text in outline(page).text if not {"style", "script", "pre"} & set(parents)]
    assert not [text for text in visible if re.search(r"\b(nan|inf|None|Infinity|NaN)\b", text)]
    assert not [text for text in visible if re.search(r"\{\w*\}|Undefined", text) and "{{ 7*7 }}" not in text]


def test_page_is_smaller_than_eight_mebibytes(page: str) -> None:
    assert len(page.encode()) < 8 << 20


def test_hostile_text_is_shown_and_not_obeyed(pages: dict[str, str]) -> None:
    page = pages["hostile"]
    assert "<script>alert" not in page
    texts = " ".join(text for _, text in outline(page).text)
    assert HOSTILE in texts


def test_page_refuses_to_grow_beyond_its_limit(view_of: Callable[..., View], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render, "LIMIT_BYTES", 1000)
    with pytest.raises(Exception, match="over the limit"):
        render.page(view_of(blocks=1, drivers=("native",)))


def test_same_run_gives_the_same_page(view_of: Callable[..., View], pages: dict[str, str]) -> None:
    assert render.page(view_of(blocks=1, profile="smoke")) == pages["smoke"]


def test_page_says_that_the_vms_were_emulated_and_marks_each_figure(pages: dict[str, str]) -> None:
    assert "software emulation (TCG)" in pages["tcg"]
    assert 'class="banner"' in pages["tcg"]
    assert "software emulation (TCG)" not in pages["kvm-docker"]
    assert ">TCG<" not in pages["kvm-docker"]
    row = re.search(r'<tr[^>]*id="row-startup".*?</tr>', pages["tcg"], re.DOTALL)
    assert row is not None
    assert row[0].count(">TCG<") == 2


def test_journal_and_samples_are_within_reach(pages: dict[str, str]) -> None:
    uri = re.search(r'download="journal.jsonl" href="data:[^,]+,([^"]+)"', pages["smoke"])
    assert uri is not None
    first = base64.b64decode(uri[1]).splitlines()[0]
    assert json.loads(first)["run_id"] == "synthetic"
    for name in ("samples.csv", "claims.csv", "claims.tex", "startup-ready.svg", "startup-ready.pdf"):
        assert f'download="{name}"' in pages["smoke"]


def test_answer_with_a_gap_names_both_sides(pages: dict[str, str]) -> None:
    assert "Virtual machine: not measured: driver vm was not part of this run." in pages["native-only"]


def test_failures_are_counted_in_view(pages: dict[str, str]) -> None:
    assert re.search(r"startup\[container\]: 2 of 2 failed", pages["hostile"])


def test_chinese_page_has_chinese_headings_and_claims(pages: dict[str, str]) -> None:
    found = outline(pages["zh"])
    assert found.all("html")[0]["lang"] == "zh-Hans"
    heads = [text for parents, text in found.text if "h2" in parents or "h1" in parents]
    assert heads
    assert all(re.search(r"[\u4e00-\u9fff]", text) for text in heads if text.strip())
    assert "单机支持上千个容器" in pages["zh"]

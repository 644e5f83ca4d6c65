"""The page of a map: what it shows, and what it refuses to show."""

import re

import pytest
from support import analytic_landscape as known
from support.made_up_run import two_blocks

from flyjax.landscape import FAST, Trainings, fit
from flyjax.report.html import write_report
from flyjax.report.landscape import write_page
from flyjax.report.landscape_text import Block, html, markdown


@pytest.fixture(scope="module")
def maps():
    """Two learners on the same configurations; the second has nothing to map."""
    parts = {
        "published": known.trainings(known.steps, 0.01, n=64, conditions={"learner": "published"}),
        "reliable": known.trainings(lambda u: 0 * u[:, 0] + 0.95, 0.0, n=64, conditions={"learner": "reliable"}),
    }
    return {name: fit(part, known.RANGES, sizes=FAST) for name, part in parts.items()}


def joined(maps):
    parts = [one.trainings for one in maps.values()]
    return Trainings.from_rows(
        {
            "settings": {n: c[k] for n, c in part.settings.items()},
            "conditions": {n: c[k] for n, c in part.conditions.items()},
            "seed": part.seeds[k],
            "metrics": {n: v[k] for n, v in part.metrics.items()},
        }
        for part in parts
        for k in range(len(part))
    )


def test_the_page_has_every_condition_and_can_be_made_again_from_its_table(maps, tmp_path):
    both = joined(maps)
    markdown_path, html_path, table = write_page(tmp_path, "Map", maps, both, known.RANGES)
    text = markdown_path.read_text()
    for path in re.findall(r"\]\((figures/.*?)\)", text):
        assert (tmp_path / path).stat().st_size > 1000
    assert "## Published" in text and "## Reliable" in text and maps["reliable"].problem in text
    # One change at a time: the mean of `steps` over the space is 0.02 / 6 + 0.6 / 3 + 0.98 / 2.
    (row,) = [line for line in text.splitlines() if "published → reliable" in line]
    gain = float(re.search(r"([+-]\d\.\d+) \(", row)[1])
    assert gain == pytest.approx(0.95 - (0.02 / 6 + 0.6 / 3 + 0.98 / 2), abs=0.03)
    shown = html_path.read_text()
    # Of more than one condition the details are folded, and nothing of them is left out.
    assert shown.count("<details>") == text.count("<details>") == 1 and "Recommended setting" in text
    assert shown.index("All conditions") < shown.index("<details>")
    assert "<script" not in html_path.read_text() and html_path.read_text().count("data:image/png") >= 3
    again = Trainings.read([table])
    assert len(again) == len(both) and list(again.split(known.RANGES)) == list(maps)


def test_figures_of_conditions_that_went_away_are_deleted_and_no_other_file(maps, tmp_path):
    published, figures = maps["published"], tmp_path / "figures"
    two = {"published": published, "again": published}
    write_page(tmp_path, "Map", two, joined(maps), known.RANGES)
    first = {p.name for p in figures.iterdir()}
    assert {"map_1_effects.png", "map_2_effects.png", "conditions_importance.png"} <= first
    own = {"map_3_effects.png", "map_2_notes.txt", "mine.png"}
    for name in own:
        (figures / name).write_bytes(b"kept")
    (tmp_path / "notes.png").write_bytes(b"kept")
    write_page(tmp_path, "Map", {"published": published}, published.trainings, known.RANGES)
    assert {p.name for p in figures.iterdir()} == {n for n in first if n.startswith("map_1")} | own
    assert (tmp_path / "notes.png").exists()


def test_texts_of_a_page_are_escaped(tmp_path):
    blocks = [Block("p", "<b>a|b</b>"), Block("table", columns=("x|y",), rows=(("<i>",),))]
    blocks.append(Block("details", "<u>", blocks=tuple(blocks)))
    assert "<b>" not in html(blocks, tmp_path) and "<u>" not in html(blocks, tmp_path) + markdown("title", blocks)
    assert "<i>" not in html(blocks, tmp_path)
    assert "x\\|y" in markdown("title", blocks)


def test_a_report_says_what_its_map_lacks(tmp_path):
    run = two_blocks(tmp_path / "run")
    section = write_report(run).read_text().split('<section id="landscape">')[1].split("</section>")[0]
    assert "too few nodes" in section


def test_the_script_maps_a_run_and_refuses_what_is_none(script, tmp_path, root):
    code, output, _ = script("landscape", root / "experiments" / "results" / "quickstart", "--out", tmp_path / "map")
    assert code == 0 and output.count("too few nodes") == 2
    assert {p.name for p in (tmp_path / "map").iterdir()} == {"landscape.md", "landscape.html", "trainings.csv.gz"}
    code, _, errors = script("landscape", tmp_path)
    assert code == 2 and str(tmp_path) in errors and errors.count("\n") == 1


def test_a_table_that_is_read_is_not_written_over(script, tmp_path):
    table = tmp_path / "trainings.csv.gz"
    table.write_text("seed,batch_size,connectivity_R2,my_notes\n1,2,0.123456789,precious\n")
    before = table.read_bytes()
    for given in (table, tmp_path):
        code, _, errors = script("landscape", given, "--out", tmp_path)
        assert code == 0 and table.read_bytes() == before, errors
    assert (tmp_path / "landscape.md").is_file()

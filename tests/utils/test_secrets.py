"""Keys are found in texts in whatever form they survive a gateway, an editor or a writer of JSON."""

import base64
import html
import io
import json
import random
import string
import subprocess
import sys
import unicodedata
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flyjax.config import Experiment
from flyjax.utils.atomic_io import open_lines, write_atomic, write_line
from flyjax.utils.environment import API_KEY
from flyjax.utils.errors import UserError
from flyjax.utils.secrets import MIN_LENGTH, REDACTED, RedactedStream, redact

KEY = "gw_Test-0123456789+abc/def=XYZ"  # of a gateway: no form of Anthropic's
OTHERS = "sk-ant-api03-AbCd_0123456789-xyzAA"  # somebody's

#: Categories of characters that are drawn as nothing, or that no printer draws.
INVISIBLE = ("Cc", "Cf", "Cs", "Co", "Cn", "Mn", "Me", "Zs", "Zl", "Zp")
FILLERS = "\u034f\u115f\u1160\u17b4\u180b\u2800\u3164\ufe0f\uffa0\U000e0101\U000e0020"
invisible = st.one_of(
    st.sampled_from([*FILLERS, *"\0\a\b\t\n\v\f\r\x1b\x7f\x85\xad "]), st.characters(categories=INVISIBLE)
)


@pytest.fixture(autouse=True, scope="module")
def key():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(API_KEY, KEY)
        yield


def visible_ascii(text):
    return "".join(c for c in text if "!" <= c <= "~")


@settings(deadline=None)
@given(st.integers(0, len(KEY)), invisible, st.integers(1, 40))
def test_characters_of_every_category_at_every_place(place, character, times):
    text = redact(f"<{KEY[:place]}{character * times}{KEY[place:]}>")
    assert visible_ascii(text) == f"<{REDACTED}>"


@settings(deadline=None)
@given(st.lists(invisible, min_size=len(OTHERS), max_size=len(OTHERS)))
def test_characters_at_all_places_at_once(between):
    text = "".join(k + c for k, c in zip(KEY, between))
    assert visible_ascii(redact(f"<{text}>")) == f"<{REDACTED}>"
    text = "".join(k + c for k, c in zip(OTHERS, between))
    assert visible_ascii(redact(f"<{text}>")) == f"<{REDACTED}>"


@settings(deadline=None)
@given(
    st.integers(0, 10**6).map(random.Random),
    st.integers(1, 60),
    st.sampled_from([" ", "\n", "\r\n    ", "\t", "\\n"]),
)
def test_a_wrapped_key_of_others(rng, width, gap):
    key = f"sk-ant-api03-{''.join(rng.choices(string.ascii_letters + string.digits + '-_', k=93))}AA"
    wrapped = gap.join(key[i : i + width] for i in range(0, len(key), width))
    shown = redact(f"the key {wrapped} is not yours")
    assert shown.startswith(f"the key {REDACTED} ") and not any(
        key[i : i + 6] in shown for i in range(13, len(key) - 9)
    )
    assert width < 8 or shown.endswith(" is not yours")


@pytest.mark.parametrize(
    "text", ["all keys begin with sk-ant- and are secret, so keep them", "`sk-ant-`: a prefix", "task-antenna sk-ant-x"]
)
def test_the_prefix_alone_is_no_key(text):
    assert redact(text) == text


def test_one_character_of_every_category():
    seen = {}
    for point in range(sys.maxunicode + 1):
        seen.setdefault(unicodedata.category(chr(point)), chr(point))
    for category in INVISIBLE:
        assert REDACTED in redact(f"{KEY[:9]}{seen[category]}{KEY[9:]}"), category


FORMS = [
    lambda k: json.dumps("\u200b".join(k)),
    lambda k: json.dumps(json.dumps("\ufe0f".join(k))),
    lambda k: "".join(f"\\u{ord(c):04x}" for c in k),
    lambda k: "\\u{200b}".join(k),
    lambda k: k[:7] + "\\n" + k[7:],
    lambda k: f"{k[:11]}\n  {k[11:]}",
    lambda k: f"{k[:11]}\r\n\r\n{k[11:]}",
    quote,
    lambda k: quote(k, safe=""),
    lambda k: "".join(f"%{ord(c):02X}" for c in k),
    lambda k: quote("\u200b".join(k)),
    lambda k: "".join(f"&#{ord(c)};" for c in k),
    lambda k: "&shy;".join(map(html.escape, k)),
    lambda k: k.encode().hex(),
    *(lambda k, n=n: base64.b64encode(b"user:pass"[:n] + k.encode() + b" rest").decode() for n in range(7)),
    lambda k: base64.urlsafe_b64encode(k.encode()).decode(),
    lambda k: "\n".join(base64.b64encode(k.encode()).decode()[i : i + 19] for i in (0, 19, 38)),
]


@pytest.mark.parametrize("form", FORMS)
def test_escaped_and_encoded(form):
    assert REDACTED in redact(f"before {form(KEY)} after")
    assert redact(redact(form(KEY))) == redact(form(KEY))


def test_every_part_of_parsed_json_and_only_keys():
    given = {"a": [1, 2.5, None, True, f"x {KEY}"], KEY: (OTHERS, "flow sk-ant-... task-antenna")}
    assert redact(given) == {"a": [1, 2.5, None, True, f"x {REDACTED}"], REDACTED: (REDACTED, given[KEY][1])}


@settings(deadline=None)
@given(st.text())
def test_other_texts_stay(text):
    assert redact(text) == text


@pytest.mark.parametrize("length", [0, 1, MIN_LENGTH - 1, MIN_LENGTH])
def test_a_short_key_of_a_gateway_is_a_word(monkeypatch, length):
    monkeypatch.setenv(API_KEY, f" {'q' * length}\n")
    assert redact(f"a {'q' * length} b") == ("a [redacted] b" if length == MIN_LENGTH else f"a {'q' * length} b")


def test_keys_of_every_script_and_sign(monkeypatch):
    for secret in ("é" * 40, "\udce9" * 20, "\\%&;" * 9, ".*" * 20, "(" * 20):
        monkeypatch.setenv(API_KEY, secret)
        assert redact(f"a {secret} b {'é' * 39}") == f"a {REDACTED} b {'é' * 39}"


# --- what leaves the program ---


def test_files(tmp_path):
    write_atomic(tmp_path / "a.md", f"a\u200b {KEY[:5]}\u200b{KEY[5:]}\n")
    assert (tmp_path / "a.md").read_text("utf-8") == f"a\u200b {REDACTED}\n"
    with open_lines(tmp_path / "b.jsonl") as file:
        write_line(file, {"name": f"{KEY[:5]}\u200b{KEY[5:]}", OTHERS: 1.5})
    assert json.loads((tmp_path / "b.jsonl").read_text()) == {"name": REDACTED, REDACTED: 1.5}


def test_errors_and_configurations():
    assert str(UserError(f"{KEY} is no number")) == f"{REDACTED} is no number"
    made = Experiment(description=f"with {OTHERS}", simulation={"data_path": KEY})
    assert made.description == f"with {REDACTED}" and made.simulation.data_path == REDACTED


def test_streams():
    stream = RedactedStream(io.StringIO())
    print("key:", KEY, OTHERS, file=stream)
    assert stream.getvalue() == f"key: {REDACTED} {REDACTED}\n"


@pytest.mark.parametrize("error", ["RuntimeError", "UserError"])
def test_what_a_command_prints(error):
    code = f"""
import os, warnings
from flyjax.cli import app
from flyjax.utils.errors import UserError
key = os.environ["{API_KEY}"]
main = app.make_app()
@main.command()
def command():
    print("printed", key)
    warnings.warn("warned of " + key)
    raise {error}("raised " + key)
app.run(main)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    shown = done.stdout + done.stderr
    assert (
        KEY not in shown and [f"{how} {REDACTED}" in shown for how in ("printed", "warned of", "raised")] == [True] * 3
    )

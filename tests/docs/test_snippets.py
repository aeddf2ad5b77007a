"""The code of the pages runs as a reader would run it: top to bottom, in one session."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import h5py
import numpy as np
import pytest

import posprobe

ROOT = Path(__file__).parents[2]
SMALLER = [
    (r'load_model\("smollm2"', 'load_model("zoo/rope-0"'),
    (r", (n|length)=\d+", ""),
    (r'capture\((model|patched), ("\S+")', r"capture(\1, \2, n=8, length=64"),
]
ZOO = ROOT / "data" / "zoo"


def snippets(page):
    """Python of a page, on a small model, few sequences and short ones."""
    code = "\n".join(re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL))
    for large, small in SMALLER:
        code, times = re.subn(large, small, code)
        assert times, f"{page} has no {large}"
    for kind, folder in (("AutoModelForCausalLM", "rope-0"), ("AutoTokenizer", "tokenizer")):
        hub = rf'{kind}.from_pretrained\("\S+?"'  # which no test asks
        code = re.sub(hub, f'{kind}.from_pretrained("{ZOO / folder}"', code)
    return code


@pytest.mark.parametrize("page", ["README.md", "docs/guide.md"])
def test_the_python_of_a_page_runs_from_top_to_bottom(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    found = {}
    exec(snippets(page), found)
    for store in ("store", "shifted", "text"):
        if store in found:
            found[store].close()
    if page == "README.md":
        shown = capsys.readouterr().out
        assert re.search(r"V_T +V_M +V_R", shown)
        assert re.search(r"quantity +group +estimate +low +high", shown)
        assert "..." not in shown
    else:
        assert found["search"].best_estimator_.n_sequences_ == 20
        assert len(found["grams"].grams[3]) == 5


# --- pages that read a stored file ---


@pytest.fixture
def file(tmp_path, monkeypatch):
    """A folder to work in, with the file that the page on the format reads."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "docs" / "captures" / "shifted.h5", "smollm2.h5")
    with h5py.File("smollm2.h5") as opened:
        yield opened


def code(page, language):
    """Code of one language on a page."""
    text = (ROOT / "docs" / page).read_text()
    return "\n".join(re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL))


def test_the_python_of_the_format_gives_attention(file):
    found = {}
    exec(code("format.md", "python"), found)
    assert found["weight"].shape == (file.attrs["n_heads"],)
    assert 0 < found["weight"].min() < found["weight"].max() < 1
    assert 0 < found["to_key_0"].min() < found["to_key_0"].max() <= 1


@pytest.mark.skipif(shutil.which("Rscript") is None, reason="R is not installed")
def test_the_r_of_the_format_gives_the_same(file):
    script = code("format.md", "r") + '\ncat("weight", format(weight, digits = 9))'
    done = subprocess.run(["Rscript", "-e", script], capture_output=True, text=True)
    if "no package called" in done.stderr:
        pytest.skip("rhdf5 is not installed")
    assert done.returncode == 0, done.stderr
    found = np.array(done.stdout.partition("weight")[2].split(), dtype=float)
    a = file["offset_score"][2][..., 0] - file["normalizer"][2]
    np.testing.assert_allclose(found, np.exp(a).mean(axis=(0, 1)), rtol=1e-6)


def test_the_python_of_quoting_prints_sentences(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    report = ROOT / "analyses" / "reports" / "01_two_channels"
    shutil.copy(report / "claims.json", "claims.json")
    exec(code("quoting.md", "python"), {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 20
    assert any(
        re.search(r"\(V_M > 0\)\. Estimate 0\.0\d+ nats\^2 \(95% CI", line) for line in lines
    )


def test_the_sentences_to_paste_have_the_numbers_of_the_report():
    """Numbers of the page on quoting are those of the committed claims, rounded."""
    claims = json.loads((ROOT / "analyses/reports/01_two_channels/claims.json").read_text())
    numbers = {
        claim["id"]: [claim["estimate"], claim["ci_low"], claim["ci_high"]] for claim in claims
    }
    page = " ".join((ROOT / "docs" / "quoting.md").read_text().replace("\n> ", " ").split())
    for name, form, scale in (
        ("mask_channel", "{:.3f} squared nats (95% CI {:.3f} to {:.3f};", 1),
        ("share_mask", "{:.0f}% of the net effect of position (95% CI {:.0f}% to {:.0f}%,", 100),
        ("probe_residual", "R2 = {:.2f}, averaged over layers (95% CI {:.2f} to {:.2f},", 1),
        ("bos_replacement", "was {:.0f}% (95% CI {:.0f}% to {:.0f}%,", 100),
    ):
        sentence = form.format(*(scale * number for number in numbers[name]))
        assert sentence in page


def test_the_page_on_citing_has_the_version():
    version = re.findall(r"version = \{(.*?)\}", (ROOT / "docs" / "citing.md").read_text())
    assert version == [posprobe.__version__]

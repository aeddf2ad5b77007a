"""The Python of README and guide runs as a reader would run it: top to bottom, in one session."""

import re
from pathlib import Path

import pytest

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

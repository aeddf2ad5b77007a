"""What is read, from whatever a user has, and what is refused."""

import hashlib
import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest

from posprobe.errors import StimulusError
from posprobe.stimuli import BUNDLED, UNNAMED, read_text, text_source
from posprobe.stimuli.text import join_texts

HAS_DATASETS = importlib.util.find_spec("datasets") is not None
needs_datasets = pytest.mark.skipif(
    not HAS_DATASETS, reason="datasets is not installed: pip install 'posprobe[datasets]'"
)

# Digests of documents. Texts made from what CPython ships differ between its versions.
COMMITTED = {"english": "7012ba12f5c5", "french": "00e0c8102b30"}


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def lines(path, rows):
    return write(path, "".join(json.dumps(row) + "\n" for row in rows))


class TestBundledTexts:
    @pytest.mark.parametrize("name", BUNDLED)
    def test_each_is_long_enough_and_says_where_it_is_from(self, name):
        text = read_text(name)
        assert text.characters > 150_000
        assert text.kind
        assert text.source
        assert text.licence in {"PSF-2.0", "Apache-2.0"}
        assert (text.given, text.notes) == ((name,), ())

    @pytest.mark.parametrize("name", COMMITTED)
    def test_what_is_committed_stays_as_it_is(self, name):
        assert read_text(name).digest.startswith(COMMITTED[name])
        folder = Path(__file__).parents[2] / "posprobe" / "stimuli" / "data"
        found = hashlib.sha256((folder / f"{name}.txt").read_bytes()).hexdigest()
        assert f"| {found} |" in (folder / "README.md").read_text(encoding="utf-8")

    def test_what_cpython_ships_carries_its_version(self):
        for name, recorded in (("python-reference", r"pydoc_data\.topics"), ("code", "code")):
            assert re.fullmatch(rf"{recorded}, Python 3\.\d+\.\d+", read_text(name).name)

    def test_the_default_is_the_reference_as_one_document(self):
        from pydoc_data.topics import topics

        text = read_text()
        assert text == read_text("python-reference")
        assert text.documents == ("\n\n".join(topics[name] for name in sorted(topics)),)

    def test_both_languages_have_the_same_pages(self):
        english, french = read_text("english"), read_text("french")
        assert len(english.documents) == len(french.documents) == 14
        for one, other in zip(english.documents, french.documents, strict=True):
            assert 1.1 < len(other) / len(one) < 1.4

    def test_shuffled_is_the_default_and_shuffled_colon_another(self):
        text = read_text("shuffled")
        assert (text.shuffled, text.given) == (True, ("shuffled:python-reference",))
        assert text.documents == read_text().documents
        assert read_text("shuffled:french").name == "shuffled french"
        assert read_text("shuffled:french") == read_text(read_text("french").shuffle())

    def test_a_damaged_installation_is_refused(self, monkeypatch):
        monkeypatch.setattr("posprobe.stimuli.bundled.FRENCH", "0" * 64)
        with pytest.raises(StimulusError, match="'french' is not the one that posprobe came with"):
            read_text("french")


class TestStrings:
    def test_a_string_is_the_text_itself(self):
        text = read_text("Some words.")
        assert (text.name, text.documents, text.given) == (UNNAMED, ("Some words.",), ())

    def test_a_string_that_names_a_file_or_folder_is_refused(self, tmp_path, monkeypatch):
        path = write(tmp_path / "words.txt", "Some words.")
        for value in (str(path), str(tmp_path)):
            with pytest.raises(StimulusError, match=r"names a file or folder: pass Path\(\.\.\.\)"):
                read_text(value)
            with pytest.raises(StimulusError, match=r"pass Path\(\.\.\.\)"):
                read_text([value])
        monkeypatch.chdir(tmp_path)
        with pytest.raises(StimulusError, match=r"text='words\.txt' is a string"):
            read_text("words.txt")
        assert read_text(f"{path}\n").name == UNNAMED
        assert read_text(Path("words.txt")).documents == ("Some words.",)

    def test_long_strings_and_odd_ones_are_no_paths(self):
        for value in ("word " * 5000, "x" * 300, "a\0b"):
            assert read_text(value).documents == (value,)

    def test_a_list_of_strings_is_a_list_of_documents(self):
        text = read_text(["One.", "Two.", " \n"])
        assert (text.name, text.documents) == (UNNAMED, ("One.", "Two."))
        assert text.notes == ("1 empty document left out",)

    @pytest.mark.parametrize(
        ("value", "said"),
        [
            (b"Some words.", r"text is bytes: decode them, e\.g\. text\.decode\('utf-8'\)"),
            (3, r"text is of type int: pass a str, a Path, a Text, or a list"),
            ([b"Some words."], "text is bytes"),
            ([], "text is an empty list"),
            ("", "the text is empty"),
            (" \n", "the text is empty"),
        ],
    )
    def test_what_is_no_text(self, value, said):
        with pytest.raises(StimulusError, match=said):
            read_text(value)

    def test_the_command_line_takes_names_and_else_paths(self, tmp_path):
        assert text_source("code") == "code"
        assert text_source("hf:org/name:test") == "hf:org/name:test"
        assert text_source("shuffled:words.txt") == "shuffled:words.txt"
        assert text_source("./code") == Path("code")
        path = write(tmp_path / "words.txt", "Some words.")
        text = read_text(text_source(f"shuffled:{path}"))
        assert (text.name, text.given) == ("shuffled words.txt", ("shuffled:words.txt",))


class TestFiles:
    def test_a_file_is_read_as_utf8_without_its_mark(self, tmp_path):
        path = write(tmp_path / "text.txt", b"\xef\xbb\xbf" + "Grüße, Ordnung".encode())
        text = read_text(path)
        assert (text.name, text.documents) == ("text.txt", ("Grüße, Ordnung",))
        assert text.digest == hashlib.sha256("Grüße, Ordnung".encode()).hexdigest()

    def test_line_ends_become_lf_and_the_text_says_so(self, tmp_path):
        unix = read_text(write(tmp_path / "unix.txt", "a\nb\nc\n"))
        dos = read_text(write(tmp_path / "dos.txt", "a\r\nb\rc\r\n"))
        assert dos.documents == unix.documents
        assert dos.digest == unix.digest
        assert (unix.notes, dos.notes) == ((), ("line ends made LF in 1 document",))

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", r"the text file .*text\.txt is empty"),
            (b" \n\t", r"the text file .*text\.txt is empty"),
            (
                b"a\xff\xfe",
                r"is not UTF-8 text \(byte 1\): .* iconv -f LATIN1 -t UTF-8 /.*text\.txt",
            ),
            (b"GGUF\0\0\0", r"text\.txt is not text but a binary file"),
        ],
    )
    def test_files_that_are_no_text(self, tmp_path, content, message):
        with pytest.raises(StimulusError, match=message):
            read_text(write(tmp_path / "text.txt", content))

    def test_a_missing_file(self, tmp_path):
        with pytest.raises(StimulusError, match=r"cannot read .*absent\.txt: No such file"):
            read_text(tmp_path / "absent.txt")

    def test_a_table_is_refused_with_what_to_do(self, tmp_path):
        with pytest.raises(StimulusError, match=r"a\.csv is a table, .* as JSON lines \(\.jsonl\)"):
            read_text(write(tmp_path / "a.csv", "id,text\n1,words\n"))

    def test_several_keep_their_documents_apart(self, tmp_path):
        one = write(tmp_path / "one.txt", "One.\r\n")
        two = lines(tmp_path / "two.jsonl", [{"text": "Two."}, {"text": "Three."}])
        text = read_text([one, two, "english"])
        assert text.name == "one.txt, two.jsonl, english"
        assert text.documents[:3] == ("One.\n", "Two.", "Three.")
        assert text.given == ("one.txt", "two.jsonl", "english")
        assert text.notes == ("one.txt: line ends made LF in 1 document",)
        assert text.digest != read_text([two, one, "english"]).digest

    def test_the_digest_knows_where_documents_end(self):
        assert read_text(["ab", "c"]).digest != read_text(["a", "bc"]).digest

    def test_shuffled_and_other_texts_do_not_mix(self):
        with pytest.raises(StimulusError, match="shuffle all of them"):
            join_texts([read_text("Some words."), read_text("Some words.").shuffle()])

    def test_a_name_that_is_nearly_a_bundled_one_is_suggested(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        said = "there is no text or file 'frensh'; did you mean the bundled text 'french'"
        with pytest.raises(StimulusError, match=said):
            read_text(text_source("frensh"))
        write(tmp_path / "frensh", "My own words.")
        assert read_text(text_source("frensh")).documents == ("My own words.",)
        with pytest.raises(StimulusError, match="cannot read the text file nothing"):
            read_text(text_source("nothing.txt"))


class TestFolders:
    def test_prose_and_code_are_read_in_the_order_of_paths(self, tmp_path):
        write(tmp_path / "b.md", "second")
        write(tmp_path / "a" / "z.py", "first")
        lines(tmp_path / "c.jsonl", [{"text": "third"}, {"text": "fourth"}])
        write(tmp_path / ".git" / "x.txt", "hidden")
        write(tmp_path / "image.png", b"\x89PNG\0")
        write(tmp_path / "empty.py", "")
        text = read_text(tmp_path)
        assert text.documents == ("first", "second", "third", "fourth")
        assert text.name == f"{tmp_path.name}/ (3 files)"
        assert text.given == (f"{tmp_path.name}/",)
        assert text.notes == ("1 empty file left out", "1 file of another kind left out")

    def test_a_binary_file_in_disguise_is_refused_by_name(self, tmp_path):
        write(tmp_path / "a.txt", "words")
        write(tmp_path / "b.txt", b"GGUF\0")
        with pytest.raises(StimulusError, match=r"b\.txt is not text but a binary file"):
            read_text(tmp_path)

    def test_a_folder_without_text(self, tmp_path):
        with pytest.raises(
            StimulusError, match=r"has no text: no file in it ends in one of .*\.md"
        ):
            read_text(tmp_path)
        write(tmp_path / "a.txt", "")
        with pytest.raises(StimulusError, match=r"all texts in the folder .* are empty"):
            read_text(tmp_path)


class TestRows:
    @pytest.mark.parametrize("suffix", [".jsonl", ".ndjson", ".json"])
    def test_each_object_of_json_lines_is_a_document(self, tmp_path, suffix):
        rows = [{"text": "One."}, {"text": None}, {"text": "Two."}]
        text = read_text(lines(tmp_path / f"a{suffix}", rows))
        assert text.documents == ("One.", "Two.")
        assert (text.field, text.notes) == ("text", ("1 empty document left out",))

    def test_json_is_a_list_of_objects_or_strings_or_one_object(self, tmp_path):
        for value in ([{"text": "One."}, {"text": "Two."}], ["One.", "Two."]):
            path = write(tmp_path / "a.json", json.dumps(value, indent=1))
            assert read_text(path).documents == ("One.", "Two.")
        path = write(tmp_path / "a.json", json.dumps({"body": "One."}))
        assert read_text(path, field="body").documents == ("One.",)

    def test_another_field_is_named(self, tmp_path):
        path = lines(tmp_path / "a.jsonl", [{"id": 1, "body": "One."}])
        with pytest.raises(
            StimulusError, match=r"a\.jsonl, line 1, has no field 'text'; its fields are body, id: "
        ):
            read_text(path)
        text = read_text(path, field="body")
        assert (text.documents, text.field) == (("One.",), "body")
        with pytest.raises(StimulusError, match=r"field 'id' of .* is of type int, not text"):
            read_text(path, field="id")

    def test_a_field_that_nothing_has_is_refused(self, tmp_path):
        path = write(tmp_path / "a.txt", "Some words.")
        with pytest.raises(
            StimulusError, match=r"field 'body' was asked for, and a\.txt has no fi"
        ):
            read_text(path, field="body")

    @pytest.mark.parametrize(
        ("name", "content", "said"),
        [
            ("a.jsonl", '{"text": "a"}\n{"text"\n', r"a\.jsonl, line 2, is not JSON \(Expecting"),
            ("a.json", '{"text": ', r"a\.json is not JSON: Expecting value"),
            ("a.jsonl", "[1, 2]\n", r"line 1, has no field 'text'; it has none"),
            ("a.jsonl", '{"text": " "}\n', r"the text a\.jsonl is empty"),
        ],
    )
    def test_what_is_not_json_with_text(self, tmp_path, name, content, said):
        with pytest.raises(StimulusError, match=said):
            read_text(write(tmp_path / name, content))

    def test_reading_stops_behind_the_characters_asked_for(self, tmp_path):
        path = lines(tmp_path / "a.jsonl", [{"text": "12345"}] * 4)
        text = read_text(path, characters=6)
        assert text.documents == ("12345", "12345")
        assert (text.limit, text.notes) == (6, ("read up to 6 characters",))
        assert read_text(path, characters=20).notes == ()

    def test_without_the_extra_it_is_named(self, tmp_path, monkeypatch):
        for module in ("pyarrow", "datasets"):
            monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(
            StimulusError, match=r"Parquet needs pyarrow; .* 'posprobe\[datasets\]'"
        ):
            read_text(write(tmp_path / "a.parquet", b"PAR1"))
        with pytest.raises(StimulusError, match=r"needs datasets; .* 'posprobe\[datasets\]'"):
            read_text(f"hf:{tmp_path}")


@needs_datasets
class TestDataSets:
    @pytest.fixture
    def folder(self, tmp_path):
        """A local data set of two splits."""
        for split, words in (("train", "One"), ("test", "Two")):
            rows = [{"id": i, "text": f"{words} {i}.", "body": "x"} for i in range(5)]
            lines(tmp_path / "mine" / f"{split}.jsonl", rows)
        return tmp_path / "mine"

    def test_a_local_folder_is_streamed_by_split_and_field(self, folder):
        text = read_text(f"hf:{folder}")
        assert text.documents == tuple(f"One {i}." for i in range(5))
        assert (text.name, text.given) == ("hf:mine:train", ("hf:mine:train",))
        assert read_text(f"hf:{folder}:test").documents[0] == "Two 0."
        assert read_text(f"hf:{folder}", field="body").documents == ("x",) * 5

    def test_reading_stops_early(self, folder):
        text = read_text(f"hf:{folder}", characters=7)
        assert (text.documents, text.notes) == (("One 0.", "One 1."), ("read up to 7 characters",))

    def test_a_data_set_is_never_read_without_end(self, folder, monkeypatch):
        monkeypatch.setattr("posprobe.stimuli.data_sets.CHARACTERS", 7)
        assert read_text(f"hf:{folder}").documents == ("One 0.", "One 1.")

    def test_one_that_was_saved(self, folder, tmp_path):
        import datasets

        rows = datasets.Dataset.from_list([{"text": "Saved."}])
        rows.save_to_disk(tmp_path / "single")
        datasets.DatasetDict({"train": rows}).save_to_disk(tmp_path / "splits")
        assert read_text(f"hf:{tmp_path / 'single'}").documents == ("Saved.",)
        assert read_text(f"hf:{tmp_path / 'splits'}").documents == ("Saved.",)

    def test_parquet_by_file_by_folder_and_as_a_data_set(self, tmp_path):
        import pyarrow
        from pyarrow import parquet

        folder = tmp_path / "p"
        folder.mkdir()
        table = pyarrow.table({"text": ["One.", None, "Two."], "id": [1, 2, 3]})
        parquet.write_table(table, folder / "train.parquet")
        for source in (folder / "train.parquet", folder, f"hf:{folder}"):
            assert read_text(source).documents == ("One.", "Two."), source
        with pytest.raises(StimulusError, match=r"no field 'body'; its fields are id, text"):
            read_text(folder, field="body")
        with pytest.raises(StimulusError, match=r"b\.parquet cannot be read as Parquet"):
            read_text(write(tmp_path / "b.parquet", "no Parquet at all"))

    @pytest.mark.parametrize(
        ("name", "field", "said"),
        [
            (":validation", None, r"no split 'validation'; its splits are .*: write hf:"),
            (
                "",
                "words",
                r"a row of hf:mine:train has no field 'words'; its fields are body, id, ",
            ),
            ("", "id", r"field 'id' of a row of hf:mine:train is of type int"),
            ("/nothing", None, r"cannot open the data set '.*nothing'"),
        ],
    )
    def test_what_the_data_set_does_not_have(self, folder, name, field, said):
        with pytest.raises(StimulusError, match=said):
            read_text(f"hf:{folder}{name}", field=field)

    @pytest.mark.parametrize(
        ("error", "said"),
        [
            ("DatasetNotFoundError", "is neither a folder nor known to the hub"),
            ("ConnectionError", r"is not on this machine, and the hub cannot be reached \(no netw"),
        ],
    )
    def test_unknown_and_unreachable_are_told_apart(self, error, said, monkeypatch):
        import datasets

        kind = getattr(datasets.exceptions, error, ConnectionError)

        def refuse(*place, **options):
            raise kind("of the library")

        monkeypatch.setattr(datasets, "load_dataset", refuse)
        with pytest.raises(StimulusError, match=f"data set 'org/name' {said}"):
            read_text("hf:org/name")

    def test_a_name_without_a_data_set(self):
        with pytest.raises(StimulusError, match="data set '': write hf:NAME"):
            read_text("hf:")

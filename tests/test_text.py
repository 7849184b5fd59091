"""Text encoders of the published folders against the way that the published pipelines call them."""

import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_text import spiece, write_texts

from align3d.cli import main
from align3d.embedding import embed
from align3d.models.captions import clean
from align3d.models.prompt_cache import open_cache
from align3d.models.spiece import read_unigram
from align3d.models.text import Text, WordText, check_lengths, moved
from align3d.models.text_files import load_clip, load_sd3, load_t5

PROMPTS = ["a red mug", "", "The blue dog of a chair, " * 60]
pytestmark = pytest.mark.filterwarnings("ignore:at most .* tokens")  # of the last prompt
LOADERS = {"pas": load_t5, "sd15": load_clip, "sd35m": load_sd3}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    home = tmp_path_factory.mktemp("texts")
    write_texts(home / "pas", {"": "t5"})
    write_texts(home / "sd15", {"": "clip"})
    write_texts(home / "sd35m", {"": "pooled", "_2": "pooled", "_3": "t5"})
    return home


@pytest.fixture
def copy(folders, tmp_path):
    return Path(shutil.copytree(folders, tmp_path / "copy"))


def test_t5_is_the_pipeline(folders):
    """As the public code calls it: lower case, padded to 300, with the mask; what is padding is zero here."""
    source = load_t5(folders / "pas", precision="float32", clean=False)
    tower = source.tower
    ids = torch.full((3, 300), tower.pad)
    for row, prompt in enumerate(PROMPTS):
        one = tower.ids([prompt.lower().strip()])[0]
        ids[row, : len(one)] = torch.tensor(one)
    keep = (ids != tower.pad).long()
    with torch.no_grad():
        true = tower.encoder(ids, attention_mask=keep)[0]
    text = source(PROMPTS)
    assert torch.equal(text.keep, keep.float()) and text.keep.sum(1).tolist()[:2] == [4, 1]
    assert text.keep[2].sum() == 300  # cut
    assert ids[2, -1] == ids[1, 0] == 1  # and ends like any text
    assert torch.allclose(text.states, true * keep[..., None], atol=1e-5)
    assert text.pooled is None and not text.states[1, 1:].any()


def test_clip_is_the_pipeline(folders):
    from transformers import CLIPTokenizer

    source = load_clip(folders / "sd15", precision="float32")
    tower = source.tower
    ids = tower.ids(PROMPTS)
    assert ids == CLIPTokenizer.from_pretrained(folders / "sd15/tokenizer")(PROMPTS, truncation=True)["input_ids"]
    rows = torch.tensor([row + [tower.pad] * (77 - len(row)) for row in ids])
    with torch.no_grad():
        true = tower.encoder(rows).last_hidden_state
    text = source(PROMPTS)
    assert torch.allclose(text.states, true, atol=1e-5) and text.keep.shape == (3, 77) and text.keep.all()
    assert len(ids[1]) == 2 and len(ids[2]) == 77 and ids[2][-1] == ids[1][-1] == tower.pad


def test_sd3_is_the_pipeline(folders):
    source = load_sd3(folders / "sd35m", precision="float32")
    text, (left, right) = source(PROMPTS), source.clips
    assert text.states.shape == (3, 333, 16) and text.keep.all() and text.pooled.shape == (3, 12)
    assert (left.pad, right.pad) == (55, 52)  # the second pads with "!"
    with torch.no_grad():
        for tower, columns, pooled in ((left, slice(0, 4), slice(0, 6)), (right, slice(4, 12), slice(6, 12))):
            rows = torch.tensor([row + [tower.pad] * (77 - len(row)) for row in tower.ids(PROMPTS)])
            true = tower.encoder(rows, output_hidden_states=True)
            assert torch.allclose(text.states[:, :77, columns], true.hidden_states[-2], atol=1e-5)
            assert torch.allclose(text.pooled[:, pooled], true.text_embeds, atol=1e-5)
        ids = [row + [0] * (256 - len(row)) for row in source.t5.ids(PROMPTS)]
        assert torch.allclose(text.states[:, 77:], source.t5.encoder(torch.tensor(ids))[0], atol=1e-5)
    assert not text.states[:, :77, 12:].any()


@pytest.mark.parametrize("name", LOADERS)
def test_rows_do_not_depend_on_the_batch_and_a_cache_gives_the_same(folders, tmp_path, name):
    source = LOADERS[name](folders / name)  # bfloat16
    together = source(PROMPTS)
    alone = Text.cat([source([prompt]) for prompt in PROMPTS])
    moved = LOADERS[name](folders / name, offload=True)(PROMPTS)
    cache = embed(source, PROMPTS, tmp_path / "c", batch_size=3)
    cached = open_cache(tmp_path / "c", source.identity)(PROMPTS)
    for part in ("states", "keep", "pooled") if name == "sd35m" else ("states", "keep"):
        values = [getattr(text, part) for text in (together, alone, moved, cached)]
        assert all(value.dtype == torch.float32 for value in values)
        assert torch.allclose(values[0], values[1], atol=0.1)  # bfloat16 rounds elsewhere in another batch
        assert torch.equal(values[0], values[2]) and torch.equal(values[0], values[3])
        assert torch.equal(values[3], values[3].bfloat16().float())
    assert cache.identity["precision"] == "bfloat16" and not together.states.requires_grad
    assert cache.identity == cache.identity | source.identity


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_encoders_are_those_of_the_library(folders, precision):
    """Bit for bit, with tensors that are shared, and buffers that no file has."""
    import transformers

    t5, clip, both = (load(folders / name, precision=precision) for name, load in LOADERS.items())
    towers = {"pas/text_encoder": t5.tower, "sd15/text_encoder": clip.tower}
    parts = zip(("", "_2", "_3"), (*both.clips, both.t5), strict=True)
    towers |= {f"sd35m/text_encoder{end}": tower for end, tower in parts}
    for name, tower in towers.items():
        encoder = tower.encoder
        network_class = getattr(transformers, type(encoder).__name__)
        true = network_class.from_pretrained(folders / name, dtype=getattr(torch, precision), local_files_only=True)
        own, want = (dict(net.named_buffers()) | net.state_dict() for net in (encoder, true))
        assert list(own) == list(want)
        assert all(own[key].dtype == want[key].dtype and torch.equal(own[key], want[key]) for key in want)
        assert len(list(encoder.parameters())) == len(list(true.parameters())) and not encoder.training
        assert encoder.config.to_dict() | {"_name_or_path": 0} == true.config.to_dict() | {"_name_or_path": 0}
        assert encoder.config._attn_implementation == true.config._attn_implementation
        ids = torch.tensor([tower.ids(PROMPTS[:1])[0]])
        with torch.no_grad():
            one, two = (net(ids, output_hidden_states=True) for net in (encoder, true))
        assert torch.equal(one[0], two[0]) and all(map(torch.equal, one.hidden_states, two.hidden_states))


def test_tables_of_words_under_two_names_that_differ_are_refused(copy):
    path = copy / "pas/text_encoder/model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"encoder.embed_tokens.weight": tensors["shared.weight"] + 1}, path)
    with pytest.raises(ValueError, match=r"shared\.weight and encoder\.embed_tokens\.weight differ"):
        load_t5(copy / "pas")
    tensors["encoder.embed_tokens.weight"] = tensors.pop("shared.weight")
    save_file(tensors, path)
    encoder = load_t5(copy / "pas").tower.encoder
    assert encoder.shared.weight is encoder.encoder.embed_tokens.weight


@pytest.mark.parametrize("name", [*LOADERS, "words", "cache"])
def test_texts_of_inference_mode_can_be_used_in_training(folders, tmp_path, name):
    from align3d.models.nets.text import TextEncoder

    if name == "words":
        source = WordText(TextEncoder(("red",), buckets=16, max_words=6, max_pieces=4, dim=8, layers=1, heads=2))
    elif name == "cache":
        source = embed(load_clip(folders / "sd15"), ["a mug"], tmp_path / "c")
    else:
        source = LOADERS[name](folders / name)
    with torch.inference_mode():
        text = source(["a mug"])
    for part in (text.states, text.keep, text.pooled):
        assert part is None or not (part.is_inference() or part.requires_grad)


def test_captions_are_cleaned_only_where_that_is_asked_for(folders):
    """As in the generators' own options."""
    raw, cleaned = load_t5(folders / "pas"), load_t5(folders / "pas", clean=True)
    assert (raw.clean, cleaned.clean) == (False, True)
    assert not torch.equal(raw(["a <b>red</b> mug"]).keep, cleaned(["a <b>red</b> mug"]).keep)


def test_offloaded_weights_come_back(folders):
    """The same memory as before, whatever happened to what was there in the meantime."""
    encoder = load_t5(folders / "pas").tower.encoder
    before = [(tensor, tensor.data_ptr(), tensor.clone()) for tensor in (*encoder.parameters(), *encoder.buffers())]
    with pytest.raises(RuntimeError, match="no memory"), moved(encoder, "cpu"):
        for tensor, *_ in before:
            tensor.data = torch.zeros_like(tensor)
        raise RuntimeError("no memory")
    assert all(tensor.data_ptr() == pointer and torch.equal(tensor, value) for tensor, pointer, value in before)


def test_identity_is_of_the_files(copy):
    source = load_t5(copy / "pas", precision="float32")
    assert source.identity == load_t5(copy / "pas", precision="float32", offload=True).identity
    assert load_t5(copy / "pas").identity["precision"] == "bfloat16"
    path = copy / "pas/text_encoder/model.safetensors"
    tensors = load_file(path)
    tensors["shared.weight"][5, 3] += 1
    save_file(tensors, path, metadata={"format": "pt"})
    changed = load_t5(copy / "pas", precision="float32").identity
    assert {key for key in changed if changed[key] != source.identity[key]} == {"weights"}


def test_shards_and_half_precision_files(copy):
    folder = copy / "pas/text_encoder"
    whole = load_t5(copy / "pas", precision="float32")(PROMPTS)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names, files = sorted(tensors), ["model.fp16-00001-of-00002.safetensors", "model.fp16-00002-of-00002.safetensors"]
    for i, file in enumerate(files):
        save_file({name: tensors[name] for name in names[i::2]}, folder / file, metadata={"format": "pt"})
    places = {name: files[i % 2] for i, name in enumerate(names)}
    index = folder / "model.safetensors.index.fp16.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    assert torch.equal(load_t5(copy / "pas", precision="float32")(PROMPTS).states, whole.states)
    index.write_text(json.dumps({"weight_map": {"a": "../secret.safetensors"}}))
    with pytest.raises(ValueError, match=r"it names the file '../secret"):
        load_t5(copy / "pas")
    index.write_text(json.dumps({"weight_map": {"a": "model-3.safetensors"}}))
    with pytest.raises(FileNotFoundError, match=r"model-3\.safetensors is missing"):
        load_t5(copy / "pas")


def test_names_that_published_files_have_twice_or_in_vain(copy):
    """T5's table under two names, CLIP's list of positions; anything else that is too much is refused."""
    for name, more, like in (
        ("pas", "encoder.embed_tokens.weight", "shared.weight"),
        ("sd15", "text_model.embeddings.position_ids", None),
    ):
        path = copy / name / "text_encoder/model.safetensors"
        before, tensors = LOADERS[name](copy / name)(["a mug"]), load_file(path)
        extra = tensors[like].clone() if like else torch.arange(77)[None]
        save_file(tensors | {more: extra}, path, metadata={"format": "pt"})
        assert torch.equal(LOADERS[name](copy / name)(["a mug"]).states, before.states)
        save_file(tensors | {"foo": torch.zeros(2)}, path, metadata={"format": "pt"})
        with pytest.raises(ValueError, match=r"does not fit .*: 1 unknown, such as foo"):
            LOADERS[name](copy / name)


def drop(path: Path) -> None:
    tensors = load_file(path)
    del tensors[sorted(tensors)[0]]
    save_file(tensors, path, metadata={"format": "pt"})


def reshape(path: Path) -> None:
    tensors = load_file(path)
    name = sorted(tensors)[0]
    save_file(tensors | {name: tensors[name][:-1].clone()}, path, metadata={"format": "pt"})


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def eighth(path: Path) -> None:
    tensors = load_file(path)
    name = sorted(tensors)[0]
    save_file(tensors | {name: tensors[name].to(torch.float8_e4m3fn)}, path, metadata={"format": "pt"})


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def deep(path: Path) -> None:
    change(path, num_layers=400)


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        ("text_encoder/model.safetensors", Path.unlink, "is missing; the folder of a network is needed"),
        ("text_encoder/model.safetensors", cut, r"model\.safetensors is damaged"),
        ("text_encoder/model.safetensors", drop, "does not fit T5EncoderModel: 1 missing, such as encoder"),
        ("text_encoder/model.safetensors", reshape, "does not fit T5EncoderModel: 1 of another shape"),
        ("text_encoder/model.safetensors", eighth, "has numbers of type float8_e4m3fn"),
        ("text_encoder/config.json", lambda p: p.write_text("[]"), "it holds no object"),
        ("text_encoder/config.json", lambda p: p.write_text("{}" + " " * (1 << 20)), "it has more than"),
        ("text_encoder/config.json", lambda p: change(p, d_model=1 << 20, vocab_size=1 << 20), "of another shape"),
        ("text_encoder/config.json", lambda p: change(p, d_ff=1 << 21), "it has d_ff 2097152, expected at most"),
        ("text_encoder/config.json", lambda p: change(p, num_heads="x"), "describes no T5EncoderModel"),
        ("text_encoder/config.json", Path.unlink, r"config\.json is missing"),
        ("text_encoder/config.json", lambda p: p.write_text("{"), "damaged"),
        ("text_encoder/config.json", deep, "num_layers 400, expected at most 21"),
        ("tokenizer/spiece.model", Path.unlink, r"spiece\.model is missing"),
        ("tokenizer/spiece.model", cut, "damaged, or no tokenizer of T5"),
        ("tokenizer/spiece.model", lambda p: p.write_bytes(b""), "no piece </s>"),
        ("tokenizer/spiece.model", lambda p: p.with_name("tokenizer.json").write_text("{}"), r"tokenizer\.json is dam"),
    ],
)
def test_damage_is_one_clear_line(copy, name, damage, said):
    damage(copy / "pas" / name)
    with pytest.raises((ValueError, FileNotFoundError), match=said) as caught:
        load_t5(copy / "pas")
    assert "\n" not in str(caught.value)


def test_a_damaged_clip_is_one_clear_line(copy):
    (copy / "sd15/tokenizer/vocab.json").write_text("[")
    with pytest.raises(ValueError, match="no tokenizer of CLIP"):
        load_clip(copy / "sd15")
    (copy / "sd15/tokenizer/merges.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"merges\.txt is missing; copy tokenizer/"):
        load_clip(copy / "sd15")


def test_unigram_takes_the_likeliest_pieces():
    tokenizer = read_unigram(spiece())
    assert tokenizer.encode("a  red\tmugs Z").tokens == ["▁a", "▁red", "▁mug", "s", "▁", "Z", "</s>"]
    assert tokenizer.encode("").tokens == ["</s>"] and tokenizer.encode("Z").ids == [3, 2, 1]


@pytest.mark.parametrize(
    "data", [b"\xff" * 20, b"\x0a\x05ab", spiece()[:-1], b"\x0b\x00", b"\x08\x01", b"\x1a\x02\x10\x01"]
)
def test_what_is_no_unigram_model_is_refused(data):
    with pytest.raises((ValueError, UnicodeDecodeError)):
        read_unigram(data)


@pytest.mark.parametrize(
    ("caption", "cleaned"),
    [  # what diffusers' PixArtSigmaPipeline makes of them, with bs4 and ftfy
        ("", ""),
        ("A Red Chair.", "a red chair."),
        ("A <b>red</b> chair &amp; table", "a red chair table"),
        ("see http://foo.com/bar now", "see now"),
        ("a cat \u2014 \u201cnice\u201d \u2018x\u2019", 'a cat - "nice" \'x'),
        ("jc6640 model, 3x4, page 12, 1234567", "model, ,"),
        ("this-is-my-cute-cat-x", "this is my cute cat x"),
        ("'logo for Deyse e Leandra - Meninas de Ouro'", "logo for deyse e leandra - meninas de ouro"),
        ("a/b,c", "a b, c"),
    ],
)
def test_captions_are_cleaned_as_by_the_pipeline(caption, cleaned):
    assert clean(caption) == cleaned


def test_words_of_the_embedded_generator(tmp_path):
    from align3d.models.nets.text import TextEncoder

    torch.manual_seed(0)
    network = TextEncoder(("red", "mug"), buckets=16, max_words=6, max_pieces=4, dim=8, layers=1, heads=2).eval()
    source, same = WordText(network), WordText(network)
    text = source(["a red mug", ""])
    with torch.no_grad():
        states, keep = network(network.tokenize(["a red mug", ""]))
    assert torch.equal(text.states[0, :4], states[0, :4]) and torch.equal(text.keep, keep.float())
    assert not text.states[1, 1:].any() and not text.states.requires_grad
    assert torch.equal(embed(source, ["a red mug"], tmp_path / "c")(["a red mug"]).states, text.states[:1])
    before = source.identity
    network.save_config(tmp_path / "text_encoder")
    save_file(network.state_dict(), tmp_path / "text_encoder/diffusion_pytorch_model.safetensors")
    (tmp_path / "prompts.txt").write_text("a red mug\n")
    args = {"--model.weights": tmp_path, "--prompts": tmp_path / "prompts.txt", "--out": tmp_path / "d"}
    assert main(["embed", "--device", "cpu", *(str(part) for pair in args.items() for part in pair)]) == 0
    assert torch.equal(open_cache(tmp_path / "d", before)(["", "a red mug"]).states, text.states.flip(0))
    with torch.no_grad():
        network.positions[0, 0] += 1
    assert same.identity["weights"] != before["weights"]


def test_long_prompts_are_refused():
    check_lengths(["x" * 2000])
    with pytest.raises(ValueError, match=r"'x+'\.\.\. has 2001 characters, at most 2000 are read"):
        check_lengths(["a", "x" * 2001])


@pytest.mark.parametrize("name", LOADERS)
def test_what_is_cut_is_told_once(folders, name):
    source = LOADERS[name](folders / name, precision="float32")
    long = ["a red mug " * 150, "the dog " * 150]
    with pytest.warns(
        RuntimeWarning, match=r"tokens of a prompt are read; the rest of 'a red mug .*'\.\.\. is lost"
    ) as told:
        text = source([*long, "a mug"])
    assert len(told) == 1 and text.keep[0].sum() == text.states.shape[1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(source(long).states, text.states[:2])


@pytest.mark.parametrize("name", ["pas", "sd15"])
def test_a_tokenizer_of_a_larger_vocabulary_is_refused(copy, name):
    path = copy / name / "text_encoder/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"vocab_size": 10}))
    with pytest.raises(ValueError, match=r"tokenizer.*10"):
        LOADERS[name](copy / name)

"""Pages, films and the index of a gallery, from made-up episodes."""

import re
from html.parser import HTMLParser

import av
import numpy as np
import pytest
from episodes import episode_of

from rllib_vlm.callbacks.gallery import write_gallery
from rllib_vlm.callbacks.pages import episode_view, render_page, token_pieces
from rllib_vlm.callbacks.video import film_strip, frames, write_video
from rllib_vlm.types import Completion, TokenCredit

PIECES = ["<answer>", "left", "</answer>", ""]


def credit(*advantages: float) -> TokenCredit:
    values = np.array(advantages, np.float32)
    return TokenCredit(advantages=values, returns=values)


@pytest.fixture
def make_view(make_trajectory):
    def make(turns=2, *, images=2, max_turns=40, advantages=(0.0, 2.0, -1.0, 0.01), pieces=PIECES, **kwargs):
        episode = episode_of(make_trajectory(turns, **kwargs))
        views = [tuple(np.full((images, 21, 30, 3), 8 * i, np.uint8)) for i in range(turns + 1)]
        given = [credit(*advantages)] * turns if advantages else None
        return episode_view(episode, views, [pieces] * turns, given, max_turns=max_turns)

    return make


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def of(self, name: str) -> list[dict]:
        return [attributes for tag, attributes in self.tags if tag == name]


def test_tokens_are_coloured_by_the_sign_and_size_of_their_advantage(make_view):
    none, good, bad, faint = make_view().turns[0].tokens
    assert (none.shade, good.shade, bad.shade) == (0.0, 1.0, -0.5)
    assert 0 < faint.shade < 0.2
    page = Tags(render_page("t", "s", [make_view(1)], image_pixels=64))
    coloured = [s for s in page.of("span") if "advantage" in s.get("title", "")]
    assert ["style" in s for s in coloured] == [False, True, True, True]
    assert "30,160,80" in coloured[1]["style"] and "220,50,50" in coloured[2]["style"]
    assert coloured[1]["title"] == "advantage +2.0000, log-prob -0.500"


def test_an_episode_without_credit_has_no_colours(make_view):
    view = make_view(advantages=None)
    assert all(t.advantage is None and t.shade == 0.0 for turn in view.turns for t in turn.tokens)
    assert "advantage +" not in render_page("t", "s", [view], image_pixels=64)


def test_a_page_holds_its_frames_and_asks_for_nothing_else(make_view):
    text = render_page("iteration 3", "1 episode", [make_view(2)], image_pixels=64)
    page = Tags(text)
    sources = [image["src"] for image in page.of("img")]
    assert len(sources) == 3 * 2  # two turns and the end, two cameras
    assert all(source.startswith("data:image/webp;base64,") for source in sources)
    assert not re.search(r'(src|href)="(?!data:|index\.html)', text)
    assert "left" in page.text and "success" in page.text and "+0.250" in page.text


def test_foreign_text_is_shown_and_never_run(make_view):
    evil = '<script>alert("x")</script>'
    text = render_page("t", "s", [make_view(1, text=evil, pieces=[evil, "", "", ""])], image_pixels=64)
    page = Tags(text)
    assert page.of("script") == []
    assert evil in page.text
    assert "Say <b>left</b>." in page.text and page.of("b")[0] != {}
    assert "no <answer> block" in page.text


def test_long_episodes_show_their_ends_and_say_so(make_view):
    view = make_view(9, max_turns=4)
    assert [turn.number for turn in view.turns] == [1, 2, 8, 9]
    assert "5 turns are not shown" in render_page("t", "s", [view], image_pixels=64)
    assert view.num_turns == 9


def test_large_frames_are_scaled_down(make_view):
    large = len(render_page("t", "s", [make_view(1)], image_pixels=64))
    small = len(render_page("t", "s", [make_view(1)], image_pixels=4))
    assert small < large


class ByteFamily:
    """Decodes bytes, and drops the stop token 0, as model families do."""

    def decode(self, token_ids):
        return bytes(i for i in token_ids.tolist() if i).decode("utf-8", errors="replace")


def test_pieces_add_up_to_the_answer_whatever_its_characters():
    answer = "grün → mug"
    ids = np.array([*answer.encode(), 0])
    completion = Completion(
        token_ids=ids,
        logprobs=np.zeros(len(ids), np.float32),
        policy_version=0,
        finish_reason="stop",
        text=answer,
    )
    pieces = token_pieces(ByteFamily(), completion)
    assert "".join(pieces) == answer
    assert len(pieces) == len(ids)
    assert pieces[2:4] == ["", "ü"]  # two bytes, one character: it stands at the last of them
    assert pieces[-1] == ""


def test_a_film_has_a_frame_per_turn_and_one_for_the_end(make_view, tmp_path):
    pictures = list(frames(make_view(3)))
    assert len(pictures) == 4
    assert len({picture.shape for picture in pictures}) == 1
    film = write_video(tmp_path / "film", pictures)
    assert film.suffix in (".mp4", ".webm", ".gif")
    with av.open(str(film)) as container:
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(decoded) == 4
    # Lossy, but the same scene: view i was painted with the value 8 i.
    assert [int(np.median(frame[:30])) for frame in decoded] == pytest.approx([0, 8, 16, 24], abs=4)
    assert write_video(tmp_path / "none", []) is None


def test_a_film_strip_is_bounded(make_view):
    one = next(frames(make_view(1))).shape
    strip = film_strip(make_view(30), max_frames=8)
    assert strip.shape == (2 * one[0], 4 * one[1], 3)
    assert film_strip(make_view(2, images=0)) is None


def test_a_gallery_keeps_the_newest_pages(make_view, tmp_path):
    for i in range(1, 6):
        write_gallery(tmp_path, f"iteration_{i:06d}", f"iteration {i}", [make_view(1)], keep=2)
    names = sorted(p.name for p in tmp_path.iterdir())
    assert [n for n in names if n.endswith(".html")] == [
        "index.html",
        "iteration_000004.html",
        "iteration_000005.html",
    ]
    assert len(names) == 5  # two films
    index = Tags((tmp_path / "index.html").read_text())
    assert [link["href"] for link in index.of("a")] == ["iteration_000005.html", "iteration_000004.html"]
    page = Tags((tmp_path / "iteration_000005.html").read_text())
    assert (tmp_path / page.of("video")[0]["src"]).is_file()


def test_episodes_of_text_have_pages_but_no_film(make_view, tmp_path):
    write_gallery(tmp_path, "iteration_000001", "iteration 1", [make_view(2, images=0)])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["index.html", "iteration_000001.html"]

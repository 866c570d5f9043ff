import sys
from pydoc_data.topics import topics

from preconditioned_attention.lab.data.python_reference import load_python_reference, without_repeated


def test_the_parts_are_the_topics_of_this_python() -> None:
    corpus = load_python_reference()
    documents = [*corpus.train, *corpus.validation, *corpus.test]
    assert sorted([*documents, *(topics[name] for name in corpus.left_out)]) == sorted(topics.values())
    assert corpus.python == ".".join(map(str, sys.version_info[:3]))
    description = corpus.describe()
    assert description["topics"] == len(documents)
    assert description["sha256"] == corpus.sha256
    assert description["train bytes"] == sum(len(text.encode()) for text in corpus.train)
    # Big enough to train on and to tell models apart.
    assert description["train bytes"] > 250_000
    assert description["validation bytes"] > 15_000
    assert description["test bytes"] > 15_000


def test_it_is_the_same_every_time() -> None:
    assert load_python_reference() == load_python_reference()


def test_little_of_the_held_out_text_was_trained_on() -> None:
    corpus = load_python_reference()

    def paragraphs(texts: tuple[str, ...]) -> list[str]:
        return [" ".join(paragraph.split()) for text in texts for paragraph in text.split("\n\n")]

    trained = set(paragraphs(corpus.train))
    for held_out in (corpus.validation, corpus.test):
        sizes = [(len(paragraph), paragraph in trained) for paragraph in paragraphs(held_out)]
        assert sum(size for size, known in sizes if known) < 0.02 * sum(size for size, _ in sizes)


def test_a_topic_inside_another_is_left_out() -> None:
    part = "Lambdas\n\nAn expression.\n\nA second paragraph of it."
    whole = f"Expressions\n\n{part.replace('of it', '  of it')}\n\nAnd more words than that."
    other = "Statements\n\nAn expression.\n\nQuite another thing, and longer than what it shares."
    assert without_repeated({"lambda": part, "expressions": whole, "statements": other}) == (
        ["expressions", "statements"],
        ["lambda"],
    )

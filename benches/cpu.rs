//! The CPU kernels that most of a model's time goes to, at the sizes of DA3-Large with three views of 378 x 504.
//! Throughput counts a floating-point operation as an element: `cargo bench --bench cpu`.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use lite3r::backend::{
    Request,
    cpu::{Arg, ArgMut, KERNELS},
};
use lite3r_ir::{
    DType, Op, Tensor, ValueType,
    ops::{
        Attention, AttentionGrad, Conv2d, Conv2dWeightGrad, LayerNormGrad, Linear, Resize, ResizeGrad,
        activation::Activation,
        resize::{Coordinates, ResizeMode},
    },
};

/// Memory aligned as the executor aligns it.
fn memory(bytes: usize) -> Vec<[u64; 8]> {
    vec![[0; 8]; bytes.div_ceil(64)]
}

fn bench(c: &mut Criterion, name: &str, op: Op, shapes: &[&[usize]]) {
    let inputs: Vec<Tensor> = shapes.iter().zip(1..).map(|(s, seed)| Tensor::wave(DType::F32, s, seed)).collect();
    let operands: Vec<_> = inputs.iter().map(Tensor::value_type).collect();
    let results = op.infer(&operands).expect("fits");
    let request = Request { op: &op, operands: &operands, results: &results };
    let kernel = KERNELS.iter().find(|k| k.op == op.name() && (k.accepts)(&request).is_ok()).expect("a fast row");
    let mut scratch = memory(lite3r::backend::cpu::lanes::scratch((kernel.lane)(&request)));
    let mut held: Vec<_> = inputs.iter().map(|t| memory(t.bytes().len())).collect();
    for (memory, tensor) in held.iter_mut().zip(&inputs) {
        bytemuck::cast_slice_mut(memory)[..tensor.bytes().len()].copy_from_slice(tensor.bytes());
    }
    let args: Vec<Arg<'_>> = held
        .iter()
        .zip(&inputs)
        .map(|(m, t)| Arg { dtype: DType::F32, shape: t.shape(), bytes: &bytemuck::cast_slice(m)[..t.bytes().len()] })
        .collect();
    let shapes: Vec<_> = results.iter().map(|ty| ty.dims().expect("static")).collect();
    let bytes = |ty: &ValueType| ty.bytes().expect("static");
    let mut held: Vec<_> = results.iter().map(|ty| memory(bytes(ty))).collect();
    let mut group = c.benchmark_group("cpu");
    group.sample_size(10).throughput(Throughput::Elements(op.cost(&operands, &results).flops as u64));
    group.bench_function(name, |b| {
        b.iter(|| {
            let all = held.iter_mut().zip(results.iter().zip(&shapes));
            let out = all.map(|(memory, (ty, shape))| ArgMut {
                dtype: ty.dtype,
                shape,
                bytes: &mut bytemuck::cast_slice_mut(memory)[..bytes(ty)],
            });
            (kernel.run)(&op, &args, &mut out.collect::<Vec<_>>(), bytemuck::cast_slice_mut(&mut scratch))
                .expect("runs");
        })
    });
    group.finish();
}

fn kernels(c: &mut Criterion) {
    let gelu = Linear { activation: Activation::Gelu, ..Linear::new(true) };
    bench(c, "linear 2919x1024x4096 gelu", gelu.into(), &[&[2919, 1024], &[4096, 1024], &[4096]]);
    let heads: &[usize] = &[1, 16, 2919, 64];
    bench(c, "attention 2919 tokens, 16 heads of 64", Attention::new(0.125).into(), &[heads, heads, heads]);
    let back = AttentionGrad { scale: 0.125, merged: false };
    let results: [&[usize]; 3] = [heads, &heads[..3], heads];
    bench(c, "its gradient", back.into(), &[&[heads; 3][..], &results].concat());
    let conv = Conv2d::same(1, true);
    bench(c, "conv2d 3x3 256->256 at 108x144", conv.into(), &[&[1, 256, 108, 144], &[256, 256, 3, 3], &[256]]);
    let weights = Conv2dWeightGrad::of(&Conv2d::same(1, false), [3, 3]);
    let image: &[usize] = &[1, 256, 108, 144];
    bench(c, "the gradient of its weights", weights.into(), &[image, image]);
    let rows: &[usize] = &[2919, 1024];
    bench(c, "the gradient of layer_norm 2919x1024", LayerNormGrad { eps: 1e-6 }.into(), &[rows, rows]);
    let up = Resize::new(ResizeMode::Linear, Coordinates::AlignCorners, []);
    let half = ResizeGrad::of(&up, [54.into(), 72.into()]);
    bench(c, "the gradient of resize 54x72->108x144, 256 planes", half.into(), &[image]);
}

criterion_group!(benches, kernels);
criterion_main!(benches);

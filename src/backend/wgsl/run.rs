//! Runs of a plan that is loaded: at once, timed by the device, or step by step.

use std::{future::Future, pin::Pin, time::Duration};

use lite3r_ir::Tensor;

use super::{
    adapter::Gpu,
    exec::{Loaded, blocking},
    staging::Staging,
};
use crate::{
    Error, Result,
    backend::{Executable, Probe, STEPWISE, StepRun, gpu::steps::at},
    clock::Clock,
    plan::{Buffer, Entry, Place, Port},
};

/// How an entry's inputs go in and its outputs come out.
pub(super) struct Ways {
    up: Staging,
    down: Staging,
    /// Bytes of the outputs.
    sizes: Vec<u64>,
}

impl Ways {
    fn new(gpu: &Gpu, entry: &Entry) -> Result<Self> {
        let sizes = |ports: &[Port]| ports.iter().map(|p| entry.buffers[p.buffer as usize].bytes()).collect::<Vec<_>>();
        let (inputs, outputs) = (sizes(&entry.inputs), sizes(&entry.outputs));
        Ok(Self { up: Staging::up(gpu, &inputs)?, down: Staging::down(gpu, &outputs)?, sizes: outputs })
    }
}

impl Loaded {
    /// Where a value lies.
    fn place(&self, buffer: &Buffer) -> Result<(&wgpu::Buffer, u64)> {
        match buffer.place {
            Place::Arena(offset) => Ok((&self.arena, offset)),
            Place::Weight(index) => self.weight(index),
        }
    }

    fn weight(&self, index: u32) -> Result<(&wgpu::Buffer, u64)> {
        let place = self.places.of[index as usize].map(|(buffer, offset)| (&self.weights[buffer], offset));
        place.ok_or_else(|| Error::bad_file("plan.kernel", "an output is code"))
    }

    /// Takes the way of the inputs, which is made for the first run.
    fn ways(&mut self, index: usize) -> Result<Ways> {
        match self.ways.remove(&index) {
            Some(ways) => Ok(ways),
            None => Ways::new(&self.gpu, &self.plan.entries()[index]),
        }
    }

    /// From there to where an entry reads its inputs.
    fn copy_in(&self, encoder: &mut wgpu::CommandEncoder, entry: &Entry, ways: &Ways) -> Result<()> {
        for (i, port) in entry.inputs.iter().enumerate() {
            let own = &entry.buffers[port.buffer as usize];
            let ((from, start), (to, offset)) = (ways.up.part(i), self.place(own)?);
            if own.bytes() > 0 {
                encoder.copy_buffer_to_buffer(from, start, to, offset, own.bytes().next_multiple_of(4));
            }
        }
        Ok(())
    }

    /// Outputs to where they are read from.
    fn copy_out(&self, encoder: &mut wgpu::CommandEncoder, entry: &Entry, ways: &Ways) -> Result<()> {
        for (i, port) in entry.outputs.iter().enumerate() {
            let own = &entry.buffers[port.buffer as usize];
            let ((from, offset), (to, start)) = (self.place(own)?, ways.down.part(i));
            if own.bytes() > 0 {
                encoder.copy_buffer_to_buffer(from, offset, to, start, own.bytes().next_multiple_of(4));
            }
        }
        Ok(())
    }

    /// Gives states their new values.
    fn update(&self, encoder: &mut wgpu::CommandEncoder, entry: &Entry) -> Result<()> {
        for update in &entry.updates {
            let own = &entry.buffers[update.buffer as usize];
            let ((from, offset), (to, start)) = (self.place(own)?, self.weight(update.state)?);
            if own.bytes() > 0 {
                encoder.copy_buffer_to_buffer(from, offset, to, start, own.bytes().next_multiple_of(4));
            }
        }
        Ok(())
    }

    /// As [`Loaded::update`], in a submission of its own.
    fn submit_updates(&self, entry: &Entry) -> Result<()> {
        let mut encoder = self.gpu.encoder();
        self.update(&mut encoder, entry)?;
        self.gpu.queue().submit([encoder.finish()]);
        Ok(())
    }

    /// What comes out of a run that has been submitted.
    async fn come_out(&mut self, index: usize, ways: Ways) -> Result<Vec<Tensor>> {
        let (up, down) = (ways.up.map(), ways.down.map());
        let settled = self.gpu.settle();
        let mapped = match &settled {
            Ok(()) => up.await.and(down.await),
            Err(_) => Ok(()),
        };
        settled.map_err(with_advice)?;
        mapped.map_err(|e| self.gpu.failed(&format!("a run: {e}")))?;
        let bytes = ways.down.take(&self.gpu, &ways.sizes)?;
        self.ways.insert(index, ways);
        let entry = &self.plan.entries()[index];
        Ok(entry
            .outputs
            .iter()
            .zip(bytes)
            .map(|(port, bytes)| tensor(&entry.buffers[port.buffer as usize], &bytes))
            .collect())
    }

    /// Runs an entry: one submission.
    async fn run_at_once(&mut self, index: usize, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
        let plan = self.plan.clone();
        let entry = &plan.entries()[index];
        let ways = self.ways(index)?;
        ways.up.fill(&self.gpu, &inputs.iter().map(|t| t.bytes()).collect::<Vec<_>>())?;
        let mut encoder = self.gpu.encoder();
        self.copy_in(&mut encoder, entry, &ways)?;
        {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            self.dispatch(&mut pass, index, 0..entry.steps.len());
        }
        self.update(&mut encoder, entry)?;
        self.copy_out(&mut encoder, entry, &ways)?;
        self.gpu.queue().submit([encoder.finish()]);
        self.come_out(index, ways).await
    }

    /// Brings inputs to where an entry reads them, for runs in several submissions.
    fn write(&self, entry: &Entry, inputs: &[&Tensor]) -> Result<()> {
        for (port, tensor) in entry.inputs.iter().zip(inputs) {
            let (buffer, offset) = self.place(&entry.buffers[port.buffer as usize])?;
            self.gpu.write(buffer, offset, tensor.bytes());
        }
        Ok(())
    }

    /// Values after a run in several submissions.
    fn tensors(&self, entry: &Entry, buffers: &[u32]) -> Result<Vec<Tensor>> {
        let each = || buffers.iter().map(|n| &entry.buffers[*n as usize]);
        let parts = each().map(|own| self.place(own).map(|(buffer, offset)| (buffer, offset, own.bytes())));
        let bytes = self.gpu.read(&parts.collect::<Result<Vec<_>>>()?)?;
        Ok(each().zip(bytes).map(|(own, bytes)| tensor(own, &bytes)).collect())
    }

    fn dispatch(&self, pass: &mut wgpu::ComputePass<'_>, index: usize, steps: std::ops::Range<usize>) {
        self.launches[index][steps].iter().flatten().for_each(|ready| ready.dispatch(pass));
    }

    /// Submits some steps of an entry.
    fn submit(&self, index: usize, steps: std::ops::Range<usize>) {
        let mut encoder = self.gpu.encoder();
        {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            self.dispatch(&mut pass, index, steps);
        }
        self.gpu.queue().submit([encoder.finish()]);
    }

    /// Runs all steps without waiting in between, the device's own time taken around each.
    fn run_timed(&self, index: usize, seen: &mut dyn FnMut(StepRun<'_>)) -> Result<()> {
        let steps = &self.plan.entries()[index].steps;
        let most = wgpu::QUERY_SET_MAX_QUERIES as usize / 2;
        let period = f64::from(self.gpu.queue().get_timestamp_period());
        for first in (0..steps.len()).step_by(most) {
            let count = most.min(steps.len() - first);
            let (queries, bytes) = (2 * count as u32, 16 * count as u64);
            let query_set = self.gpu.device().create_query_set(&wgpu::QuerySetDescriptor {
                label: None,
                ty: wgpu::QueryType::Timestamp,
                count: queries,
            });
            let resolved = self.gpu.device().create_buffer(&wgpu::BufferDescriptor {
                label: Some("times"),
                size: bytes,
                usage: wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC,
                mapped_at_creation: false,
            });
            let mut encoder = self.gpu.encoder();
            for (i, step) in (0..).zip(first..first + count) {
                let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
                    label: None,
                    timestamp_writes: Some(wgpu::ComputePassTimestampWrites {
                        query_set: &query_set,
                        beginning_of_pass_write_index: Some(2 * i),
                        end_of_pass_write_index: Some(2 * i + 1),
                    }),
                });
                self.dispatch(&mut pass, index, step..step + 1);
            }
            encoder.resolve_query_set(&query_set, 0..queries, &resolved, 0);
            self.gpu.queue().submit([encoder.finish()]);
            let ticks = self.gpu.read(&[(&resolved, 0, bytes)])?.remove(0);
            let ticks: Vec<u64> = ticks.chunks_exact(8).map(bytemuck::pod_read_unaligned).collect();
            for (pair, index) in ticks.chunks_exact(2).zip(first..) {
                let time = Duration::from_secs_f64(pair[1].saturating_sub(pair[0]) as f64 * period * 1e-9);
                seen(StepRun { index, step: &steps[index], time });
            }
        }
        Ok(())
    }

    /// Runs every step by itself and waits for it.
    fn run_stepwise(&self, index: usize, after: &mut dyn FnMut(StepRun<'_>) -> Result<()>) -> Result<()> {
        for (i, step) in self.plan.entries()[index].steps.iter().enumerate() {
            let begun = Clock::start();
            self.submit(index, i..i + 1);
            self.gpu.wait().map_err(|e| at(step, e))?;
            after(StepRun { index: i, step, time: begun.elapsed() })?;
        }
        Ok(())
    }
}

impl Executable for Loaded {
    fn run(&mut self, index: usize, inputs: &[&Tensor], probe: Probe<'_>) -> Result<Vec<Tensor>> {
        if matches!(probe, Probe::Nothing) && !self.stepwise {
            return blocking(self.run_at_once(index, inputs));
        }
        let plan = self.plan.clone();
        let entry = &plan.entries()[index];
        self.write(entry, inputs)?;
        match probe {
            Probe::Nothing => self.run_stepwise(index, &mut |_| Ok(()))?,
            Probe::Times(seen) if self.gpu.has_timestamps() && !self.stepwise => self.run_timed(index, seen)?,
            Probe::Times(seen) => self.run_stepwise(index, &mut |step| {
                seen(step);
                Ok(())
            })?,
            Probe::Values(seen) => self.run_stepwise(index, &mut |run| {
                let operands = self.tensors(entry, &run.step.operands)?;
                seen(run, &operands, &self.tensors(entry, &run.step.results)?);
                Ok(())
            })?,
        }
        self.submit_updates(entry)?;
        self.tensors(entry, &entry.outputs.iter().map(|port| port.buffer).collect::<Vec<_>>())
    }

    fn run_async<'a>(
        &'a mut self,
        index: usize,
        inputs: &'a [&'a Tensor],
    ) -> Pin<Box<dyn Future<Output = Result<Vec<Tensor>>> + 'a>> {
        Box::pin(self.run_at_once(index, inputs))
    }

    fn time(&mut self, index: usize, inputs: &[&Tensor], runs: usize) -> Result<Vec<Duration>> {
        let plan = self.plan.clone();
        let entry = &plan.entries()[index];
        let mut times = Vec::with_capacity(runs);
        for _ in 0..runs {
            self.write(entry, inputs)?;
            self.gpu.wait()?;
            let begun = Clock::start();
            self.submit(index, 0..entry.steps.len());
            self.submit_updates(entry)?;
            self.gpu.wait().map_err(with_advice)?;
            times.push(begun.elapsed());
        }
        Ok(times)
    }

    fn load_times(&self) -> &[(&'static str, Duration)] {
        &self.times
    }

    fn stand_in(&self, entry: usize, step: usize) -> Option<&'static str> {
        self.stand_ins[entry][step]
    }

    fn state(&mut self, index: u32) -> Result<Tensor> {
        let ty = &self.plan.header().weights[index as usize].ty;
        let (buffer, offset) = self.weight(index)?;
        let own = Buffer { ty: ty.clone(), place: Place::Weight(index) };
        Ok(tensor(&own, &self.gpu.read(&[(buffer, offset, own.bytes())])?.remove(0)))
    }

    fn set_state(&mut self, index: u32, value: &Tensor) -> Result<()> {
        let (buffer, offset) = self.weight(index)?;
        self.gpu.write(buffer, offset, value.bytes());
        self.gpu.flush()
    }

    fn allocated_bytes(&self) -> u64 {
        self.weights.iter().chain([&self.arena]).map(wgpu::Buffer::size).sum()
    }
}

/// A value of these bytes.
fn tensor(own: &Buffer, bytes: &[u8]) -> Tensor {
    let shape = own.ty.dims().unwrap_or_default();
    Tensor::from_bytes(own.ty.dtype, &shape, bytes).expect("a checked plan gives every value its size")
}

/// An error of a run with how to learn more.
fn with_advice(mut error: Error) -> Error {
    error.problems.push(format!("`{STEPWISE}=1` runs steps one by one and names the one that fails"));
    error
}

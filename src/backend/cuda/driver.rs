//! The driver: contexts, memory, modules, launches and graphs, as values that clean up after themselves.
//!
//! Everything here belongs to one device and one stream. A call makes the context current first, so that values may
//! move between threads.

#![allow(unsafe_code)] // calls into a C library

use std::{
    collections::HashSet,
    ffi::{CStr, CString, c_void},
    mem::MaybeUninit,
    ptr,
    sync::Arc,
};

use cudarc::driver::sys::{self, CUresult};
use lite3r_ir::DType;

use super::{
    Arch,
    launch::{Launch, PixelMap, Swizzle, TensorMap},
    sass,
};
use crate::{Error, Kind, Result};

/// A failure of the driver as an error with this code.
pub(super) fn check(result: CUresult, code: &'static str, what: impl FnOnce() -> String) -> Result<()> {
    if result == CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    let mut text = ptr::null();
    // SAFETY: the driver is loaded, or there would be no result; the text is static.
    let known = unsafe { sys::cuGetErrorString(result, &mut text) } == CUresult::CUDA_SUCCESS && !text.is_null();
    // SAFETY: a static, terminated string of the driver.
    let text = if known { unsafe { CStr::from_ptr(text) }.to_string_lossy() } else { "unknown".into() };
    Err(Error::device(code, format!("{}: {text} ({result:?})", what())))
}

/// A device with a context and a stream.
pub struct Context {
    device: sys::CUdevice,
    context: sys::CUcontext,
    pub(super) stream: sys::CUstream,
    arch: Arch,
    name: String,
}

// SAFETY: handles of the driver may be used from any thread; `enter` makes the context current in the calling one.
unsafe impl Send for Context {}
// SAFETY: as above; the driver locks its own state.
unsafe impl Sync for Context {}

/// The devices of this machine by name; an error without a driver. Errors: `cuda.no_driver`, `cuda.old_driver`,
/// `cuda.driver`.
pub fn devices() -> Result<Vec<String>> {
    init()?;
    let mut count = 0;
    // SAFETY: the integer lives through the call.
    check(unsafe { sys::cuDeviceGetCount(&mut count) }, "cuda.driver", || "cuDeviceGetCount".into())?;
    (0..count).map(|ordinal| device_name(device(ordinal)?)).collect()
}

/// The oldest driver that is used at all, as the driver counts: it knows dependent launches.
const OLDEST: u64 = 12000;

fn init() -> Result<()> {
    // SAFETY: looks a library up; the functions that run when it is loaded are NVIDIA's own.
    if !unsafe { sys::is_culib_present() } {
        let problem = "no CUDA driver on this machine (libcuda.so.1 was not found)";
        return Err(Error::new(Kind::NoDriver, "cuda.no_driver", problem));
    }
    new_enough(version()?, OLDEST)?;
    // SAFETY: the driver is there.
    match unsafe { sys::cuInit(0) } {
        CUresult::CUDA_ERROR_NO_DEVICE => {
            Err(Error::device("cuda.device", "the CUDA driver finds no device on this machine"))
        }
        other => check(other, "cuda.driver", || "the CUDA driver does not start".into()),
    }
}

/// The CUDA version of the driver: 13000 for 13.0.
fn version() -> Result<u64> {
    let mut version = 0;
    // SAFETY: the driver is there; the integer lives through the call.
    check(unsafe { sys::cuDriverGetVersion(&mut version) }, "cuda.driver", || "cuDriverGetVersion".into())?;
    Ok(u64::try_from(version).unwrap_or(0))
}

/// Whether a driver runs what needs this version of CUDA; newer releases of the same major version do not matter.
/// Errors: `cuda.old_driver`, with the driver to install.
pub fn new_enough(driver: u64, needed: u64) -> Result<()> {
    if driver / 1000 >= needed / 1000 {
        return Ok(());
    }
    let release = match needed / 1000 {
        12 => ", which is driver 525 or later",
        13 => ", which is driver 580 or later",
        _ => "",
    };
    let written = |version: u64| format!("{}.{}", version / 1000, version % 1000 / 10);
    let problem = format!("the driver knows CUDA {}; CUDA {}.0 is needed{release}", written(driver), needed / 1000);
    Err(Error::new(Kind::OldDriver, "cuda.old_driver", problem))
}

fn device(ordinal: i32) -> Result<sys::CUdevice> {
    let mut device = 0;
    // SAFETY: the integer lives through the call.
    check(unsafe { sys::cuDeviceGet(&mut device, ordinal) }, "cuda.device", || format!("device cuda:{ordinal}"))?;
    Ok(device)
}

fn device_name(device: sys::CUdevice) -> Result<String> {
    let mut name = [0u8; 256];
    // SAFETY: the buffer has the length that is told.
    let named = unsafe { sys::cuDeviceGetName(name.as_mut_ptr().cast(), 256, device) };
    check(named, "cuda.driver", || "cuDeviceGetName".into())?;
    Ok(CStr::from_bytes_until_nul(&name).map(|s| s.to_string_lossy().into_owned()).unwrap_or_default())
}

impl Context {
    /// Of a device by number. Errors: those of [`devices`], `cuda.device`, `cuda.arch` for generations without kernels.
    pub fn open(ordinal: i32) -> Result<Arc<Self>> {
        init()?;
        let device = device(ordinal)?;
        let name = device_name(device)?;
        let attribute = |which| {
            let mut value = 0;
            // SAFETY: the integer lives through the call.
            check(unsafe { sys::cuDeviceGetAttribute(&mut value, which, device) }, "cuda.driver", || {
                "cuDeviceGetAttribute".into()
            })?;
            Ok(value)
        };
        use sys::CUdevice_attribute_enum::{
            CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR,
            CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as MINOR,
        };
        let arch = match (attribute(MAJOR)?, attribute(MINOR)?) {
            (9, 0) => Arch::Sm90a,
            (8, 9) => Arch::Sm89,
            (8, _) => Arch::Sm80,
            (major, minor) => {
                let problem = format!(
                    "{name} has compute capability {major}.{minor}; there are kernels for 8.0 to 8.7, 8.9 and 9.0"
                );
                return Err(Error::new(Kind::Architecture, "cuda.arch", problem));
            }
        };
        let (mut context, mut stream) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: the device exists; the handle lives through the call.
        let made = unsafe { sys::cuDevicePrimaryCtxRetain(&mut context, device) };
        check(made, "cuda.driver", || "no context on the device".into())?;
        // SAFETY: the context exists; the handle lives through the call.
        let made = unsafe {
            match sys::cuCtxSetCurrent(context) {
                CUresult::CUDA_SUCCESS => {
                    sys::cuStreamCreate(&mut stream, sys::CUstream_flags_enum::CU_STREAM_NON_BLOCKING as u32)
                }
                failed => failed,
            }
        };
        check(made, "cuda.driver", || "no stream on the device".into())?;
        Ok(Arc::new(Self { device, context, stream, arch, name }))
    }

    /// What machine code it runs.
    pub fn arch(&self) -> Arch {
        self.arch
    }

    /// The name of the card.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn enter(&self) -> Result<()> {
        // SAFETY: the context lives as long as `self`.
        check(unsafe { sys::cuCtxSetCurrent(self.context) }, "cuda.driver", || "cuCtxSetCurrent".into())
    }

    /// Waits for everything on the stream. Errors: `cuda.kernel`, where a kernel has failed.
    pub fn wait(&self) -> Result<()> {
        self.enter()?;
        // SAFETY: the stream lives as long as `self`.
        let done = unsafe { sys::cuStreamSynchronize(self.stream) };
        check(done, "cuda.kernel", || "a kernel has failed".into()).map_err(|e| Error { kind: Kind::Kernel, ..e })
    }

    /// The CUDA version of the driver: 13000 for 13.0.
    pub fn driver(&self) -> Result<u64> {
        version()
    }

    /// Free and total memory of the device in bytes.
    pub fn memory(&self) -> Result<(u64, u64)> {
        self.enter()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: both live through the call.
        check(unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) }, "cuda.driver", || "cuMemGetInfo".into())?;
        Ok((free as u64, total as u64))
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: both exist and are not used afterwards. A failure would leak them, nothing more.
        unsafe {
            let _ = sys::cuStreamDestroy_v2(self.stream);
            let _ = sys::cuDevicePrimaryCtxRelease_v2(self.device);
        }
    }
}

/// Memory of a device.
pub struct Memory {
    context: Arc<Context>,
    address: u64,
    bytes: u64,
}

impl Memory {
    /// So many bytes, aligned to 256. Errors: `device.memory`, with what is free.
    pub fn new(context: &Arc<Context>, bytes: u64, purpose: &str) -> Result<Self> {
        context.enter()?;
        let mut address = 0;
        if bytes > 0 {
            // SAFETY: the address lives through the call.
            let made = unsafe { sys::cuMemAlloc_v2(&mut address, bytes as usize) };
            if made == CUresult::CUDA_ERROR_OUT_OF_MEMORY {
                let (free, total) = context.memory()?;
                let problem = format!(
                    "{}: {bytes} bytes for {purpose} are not to be had: {free} of {total} bytes are free",
                    context.name
                );
                return Err(Error::new(Kind::Memory, "device.memory", problem));
            }
            check(made, "cuda.driver", || format!("{bytes} bytes for {purpose}"))?;
        }
        Ok(Self { context: context.clone(), address, bytes })
    }

    /// Where it begins on the device.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// How much it is.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn inside(&self, offset: u64, length: usize) -> u64 {
        assert!(offset.checked_add(length as u64).is_some_and(|end| end <= self.bytes), "a copy outside its memory");
        self.address + offset
    }

    /// Copies to the device, in order with the stream; the source may change afterwards.
    ///
    /// # Panics
    /// If the range is outside: a defect of the caller.
    pub fn write(&self, offset: u64, source: &[u8]) -> Result<()> {
        if source.is_empty() {
            return Ok(());
        }
        self.context.enter()?;
        let to = self.inside(offset, source.len());
        // SAFETY: the destination is inside this memory, the source a slice of that length; from pageable memory the
        // call returns once the source is read.
        let done = unsafe { sys::cuMemcpyHtoDAsync_v2(to, source.as_ptr().cast(), source.len(), self.context.stream) };
        check(done, "cuda.copy", || format!("{} bytes to the device", source.len()))
    }

    /// Copies from the device, after all that is on the stream.
    ///
    /// # Panics
    /// If the range is outside: a defect of the caller.
    pub fn read(&self, offset: u64, target: &mut [u8]) -> Result<()> {
        if target.is_empty() {
            return Ok(());
        }
        self.context.enter()?;
        let from = self.inside(offset, target.len());
        // SAFETY: the source is inside this memory, the target a slice of that length that is borrowed until the copy
        // has been waited for.
        let done =
            unsafe { sys::cuMemcpyDtoHAsync_v2(target.as_mut_ptr().cast(), from, target.len(), self.context.stream) };
        check(done, "cuda.copy", || format!("{} bytes from the device", target.len()))?;
        self.context.wait()
    }

    /// Copies from other memory of the device, in order with the stream.
    ///
    /// # Panics
    /// If a range is outside: a defect of the caller.
    pub fn copy(&self, offset: u64, source: &Self, start: u64, bytes: u64) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        self.context.enter()?;
        let (to, from) = (self.inside(offset, bytes as usize), source.inside(start, bytes as usize));
        // SAFETY: both ranges are inside memories of the device that live at least as long as what is on the stream.
        let done = unsafe { sys::cuMemcpyDtoDAsync_v2(to, from, bytes as usize, self.context.stream) };
        check(done, "cuda.copy", || format!("{bytes} bytes on the device"))
    }

    /// Sets every byte.
    pub fn fill(&self, byte: u8) -> Result<()> {
        if self.bytes == 0 {
            return Ok(());
        }
        self.context.enter()?;
        // SAFETY: all of this memory.
        let done = unsafe { sys::cuMemsetD8Async(self.address, byte, self.bytes as usize, self.context.stream) };
        check(done, "cuda.copy", || "cuMemsetD8".into())
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if self.address != 0 && self.context.enter().is_ok() {
            // SAFETY: allocated by `new`, not used afterwards. A failure would leak it, nothing more.
            let _ = unsafe { sys::cuMemFree_v2(self.address) };
        }
    }
}

/// Machine code on a device.
pub struct Code {
    context: Arc<Context>,
    module: sys::CUmodule,
    /// Kernels that may begin while the launch in front still runs.
    waiting: HashSet<String>,
}

// SAFETY: as for `Context`, which every use makes current.
unsafe impl Send for Code {}

/// A kernel of loaded code; lives no longer than that.
#[derive(Clone, Copy)]
pub struct Function {
    function: sys::CUfunction,
    /// Whether it waits for the launch in front by itself.
    waits: bool,
}

// SAFETY: a handle of the driver.
unsafe impl Send for Function {}

impl Code {
    /// Loads a cubin. Errors: `cuda.module`.
    pub fn new(context: &Arc<Context>, cubin: &[u8], name: &str) -> Result<Self> {
        context.enter()?;
        let mut module = ptr::null_mut();
        // SAFETY: a whole ELF file; the driver checks it.
        let done = unsafe { sys::cuModuleLoadData(&mut module, cubin.as_ptr().cast()) };
        check(done, "cuda.module", || format!("module `{name}`"))?;
        let waiting = match context.arch {
            Arch::Sm90a => sass::kernels(cubin).unwrap_or_default(),
            Arch::Sm80 | Arch::Sm89 => Vec::new(),
        };
        let waiting = waiting.into_iter().filter(|k| k.waits()).map(|k| k.name.to_string()).collect();
        Ok(Self { context: context.clone(), module, waiting })
    }

    /// A kernel, allowed so much dynamic shared memory a block. Errors: `cuda.module`.
    pub fn function(&self, name: &str, shared: u32) -> Result<Function> {
        self.context.enter()?;
        let text = CString::new(name).map_err(|_| Error::device("cuda.module", "a zero byte in a name"))?;
        let mut function = ptr::null_mut();
        // SAFETY: the module is loaded, the name terminated.
        let done = unsafe { sys::cuModuleGetFunction(&mut function, self.module, text.as_ptr()) };
        check(done, "cuda.module", || format!("kernel `{name}`"))?;
        // What a kernel declares itself counts beside it, so 48 KiB may be passed below 48 KiB.
        if shared > 0 {
            use sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as SHARED;
            // SAFETY: the function was just found.
            let done = unsafe { sys::cuFuncSetAttribute(function, SHARED, shared as i32) };
            check(done, "cuda.module", || format!("kernel `{name}` with {shared} bytes of shared memory"))?;
        }
        Ok(Function { function, waits: self.waiting.contains(name) })
    }
}

impl Drop for Code {
    fn drop(&mut self) {
        if self.context.enter().is_ok() {
            // SAFETY: loaded by `new`, not used afterwards. A failure would leak it, nothing more.
            let _ = unsafe { sys::cuModuleUnload(self.module) };
        }
    }
}

/// Room for a parameter, aligned as strictly as any is.
#[derive(Clone, Copy)]
#[repr(C, align(128))]
struct Param([u8; 128]);

/// A launch with all its addresses.
pub struct Ready {
    function: Function,
    grid: [u32; 3],
    block: u32,
    shared: u32,
    slots: Vec<Param>,
    /// The slot that each parameter begins at.
    starts: Vec<usize>,
}

impl Ready {
    /// With the bytes of every parameter.
    pub fn new(function: Function, launch: &Launch, params: &[Vec<u8>]) -> Self {
        let (mut slots, mut starts) = (Vec::new(), Vec::with_capacity(params.len()));
        for param in params {
            starts.push(slots.len());
            slots.extend(param.chunks(128).map(|chunk| {
                let mut slot = Param([0; 128]);
                slot.0[..chunk.len()].copy_from_slice(chunk);
                slot
            }));
        }
        let Launch { grid, block, shared, .. } = *launch;
        Self { function, grid, block, shared, slots, starts }
    }

    /// Puts it on the stream. With `overlap`, a kernel that waits by itself begins while the launch in front still runs
    /// (programmatic dependent launch); what is not a kernel is always awaited.
    ///
    /// # Safety
    /// The parameters must be those of the kernel, and the code that it is of still loaded; what they point to must be
    /// the memory that the kernel reads and writes.
    pub unsafe fn launch(&self, context: &Context, overlap: bool) -> Result<()> {
        use sys::CUlaunchAttributeID_enum as Id;
        let mut params: Vec<*mut c_void> =
            self.starts.iter().map(|at| (&raw const self.slots[*at]).cast_mut().cast()).collect();
        let mut value = sys::CUlaunchAttributeValue { pad: [0; 64] };
        value.programmaticStreamSerializationAllowed = 1;
        let id = Id::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
        let mut attribute = sys::CUlaunchAttribute { id, pad: [0; 4], value };
        let [x, y, z] = self.grid;
        let config = sys::CUlaunchConfig {
            gridDimX: x,
            gridDimY: y,
            gridDimZ: z,
            blockDimX: self.block,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: self.shared,
            hStream: context.stream,
            attrs: &raw mut attribute,
            numAttrs: u32::from(overlap && self.function.waits),
        };
        // SAFETY: by the contract; the driver copies configuration and parameters before it returns.
        let done =
            unsafe { sys::cuLaunchKernelEx(&config, self.function.function, params.as_mut_ptr(), ptr::null_mut()) };
        check(done, "cuda.launch", || {
            let Self { grid, block, shared, .. } = self;
            format!("grid {grid:?}, {block} threads, {shared} bytes of shared memory")
        })
    }
}

/// Launches that the device runs as one.
pub struct Graph {
    context: Arc<Context>,
    exec: sys::CUgraphExec,
}

// SAFETY: as for `Context`, which every use makes current.
unsafe impl Send for Graph {}

impl Graph {
    /// Of what `record` puts on the stream.
    pub fn capture(context: &Arc<Context>, record: impl FnOnce() -> Result<()>) -> Result<Self> {
        context.enter()?;
        let mode = sys::CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream lives as long as the context.
        let begun = unsafe { sys::cuStreamBeginCapture_v2(context.stream, mode) };
        check(begun, "cuda.graph", || "recording does not begin".into())?;
        let recorded = record();
        let mut graph = ptr::null_mut();
        // SAFETY: recording has begun; the handle lives through the call.
        let ended = unsafe { sys::cuStreamEndCapture(context.stream, &mut graph) };
        recorded?;
        check(ended, "cuda.graph", || "recording does not end".into())?;
        let mut exec = ptr::null_mut();
        // SAFETY: the graph was just recorded and is destroyed once.
        let (made, _) = unsafe {
            let made = sys::cuGraphInstantiateWithFlags(&mut exec, graph, 0);
            (made, sys::cuGraphDestroy(graph))
        };
        check(made, "cuda.graph", || "the graph is not accepted".into())?;
        Ok(Self { context: context.clone(), exec })
    }

    /// Puts all of it on the stream.
    pub fn launch(&self) -> Result<()> {
        self.context.enter()?;
        // SAFETY: graph and stream exist; what the launches point to lives as long as the plan that recorded them.
        check(unsafe { sys::cuGraphLaunch(self.exec, self.context.stream) }, "cuda.graph", || "a graph".into())
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.context.enter().is_ok() {
            // SAFETY: made by `capture`, not used afterwards. A failure would leak it, nothing more.
            let _ = unsafe { sys::cuGraphExecDestroy(self.exec) };
        }
    }
}

/// A moment on the stream.
pub struct Event {
    context: Arc<Context>,
    event: sys::CUevent,
}

// SAFETY: as for `Context`, which every use makes current.
unsafe impl Send for Event {}

impl Event {
    /// Not recorded yet.
    pub fn new(context: &Arc<Context>) -> Result<Self> {
        context.enter()?;
        let mut event = ptr::null_mut();
        // SAFETY: the handle lives through the call.
        check(unsafe { sys::cuEventCreate(&mut event, 0) }, "cuda.driver", || "cuEventCreate".into())?;
        Ok(Self { context: context.clone(), event })
    }

    /// Now, on the stream.
    pub fn record(&self) -> Result<()> {
        self.context.enter()?;
        // SAFETY: event and stream exist.
        let done = unsafe { sys::cuEventRecord(self.event, self.context.stream) };
        check(done, "cuda.driver", || "cuEventRecord".into())
    }

    /// Until it has passed.
    pub fn wait(&self) -> Result<()> {
        self.context.enter()?;
        // SAFETY: the event exists.
        let done = unsafe { sys::cuEventSynchronize(self.event) };
        check(done, "cuda.kernel", || "a kernel has failed".into()).map_err(|e| Error { kind: Kind::Kernel, ..e })
    }

    /// Seconds from an earlier event to this one, once both have passed.
    pub fn since(&self, earlier: &Self) -> Result<f64> {
        self.wait()?;
        let mut milliseconds = 0f32;
        // SAFETY: both events were recorded on one stream and have passed.
        let done = unsafe { sys::cuEventElapsedTime_v2(&mut milliseconds, earlier.event, self.event) };
        check(done, "cuda.driver", || "cuEventElapsedTime".into())?;
        Ok(f64::from(milliseconds) / 1e3)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if self.context.enter().is_ok() {
            // SAFETY: made by `new`, not used afterwards. A failure would leak it, nothing more.
            let _ = unsafe { sys::cuEventDestroy_v2(self.event) };
        }
    }
}

/// The copy engine's name of an element type.
fn element(dtype: DType) -> sys::CUtensorMapDataType {
    use sys::CUtensorMapDataType_enum as Element;
    match dtype {
        DType::F32 => Element::CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
        DType::BF16 => Element::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        DType::F16 => Element::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
        DType::F8E4M3 | DType::F8E5M2 | DType::U8 | DType::Bool => Element::CU_TENSOR_MAP_DATA_TYPE_UINT8,
        DType::I32 => Element::CU_TENSOR_MAP_DATA_TYPE_INT32,
        DType::I64 => Element::CU_TENSOR_MAP_DATA_TYPE_INT64,
        DType::F64 => Element::CU_TENSOR_MAP_DATA_TYPE_FLOAT64,
    }
}

/// The copy engine's name of a permutation.
fn permutation(swizzle: Swizzle) -> sys::CUtensorMapSwizzle {
    use sys::CUtensorMapSwizzle_enum as Permutation;
    match swizzle {
        Swizzle::None => Permutation::CU_TENSOR_MAP_SWIZZLE_NONE,
        Swizzle::B32 => Permutation::CU_TENSOR_MAP_SWIZZLE_32B,
        Swizzle::B64 => Permutation::CU_TENSOR_MAP_SWIZZLE_64B,
        Swizzle::B128 => Permutation::CU_TENSOR_MAP_SWIZZLE_128B,
    }
}

/// The 128 bytes that an encoder of the driver wrote. Errors: `cuda.tensor_map`.
fn encoded(done: sys::CUresult, map: MaybeUninit<sys::CUtensorMap>, what: impl FnOnce() -> String) -> Result<Vec<u8>> {
    check(done, "cuda.tensor_map", what)?;
    // SAFETY: written by the driver; 128 plain bytes.
    let bytes = unsafe { std::slice::from_raw_parts(map.as_ptr().cast::<u8>(), size_of::<sys::CUtensorMap>()) };
    Ok(bytes.to_vec())
}

/// The 128 bytes of a tensor map over memory at `address`. Errors: `cuda.tensor_map`.
pub fn tensor_map(map: &TensorMap, address: u64) -> Result<Vec<u8>> {
    use sys::{
        CUtensorMapFloatOOBfill_enum as Fill, CUtensorMapInterleave_enum as Interleave,
        CUtensorMapL2promotion_enum as Promotion,
    };
    let rank = map.dims.len();
    let fits = map.strides.len() + 1 == rank && map.tile.len() == rank && map.steps.len() == rank;
    assert!(fits, "as many sizes as dimensions");
    let mut made = MaybeUninit::<sys::CUtensorMap>::uninit();
    // SAFETY: the arrays have as many entries as there are dimensions, or one less for strides. The driver writes the
    // whole map or fails.
    let done = unsafe {
        sys::cuTensorMapEncodeTiled(
            made.as_mut_ptr(),
            element(map.dtype),
            map.dims.len() as u32,
            address as *mut c_void,
            map.dims.as_ptr(),
            map.strides.as_ptr(),
            map.tile.as_ptr(),
            map.steps.as_ptr(),
            Interleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            permutation(map.swizzle),
            Promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            Fill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    };
    encoded(done, made, || format!("{map:?}"))
}

/// The 128 bytes of a map of columns of pixels at `address`. Errors: `cuda.tensor_map`.
pub fn pixel_map(map: &PixelMap, address: u64) -> Result<Vec<u8>> {
    use sys::{
        CUtensorMapFloatOOBfill_enum as Fill, CUtensorMapInterleave_enum as Interleave,
        CUtensorMapL2promotion_enum as Promotion,
    };
    let [channels, width, height, _] = map.dims;
    let pixel = channels * map.dtype.size() as u64;
    let strides = [pixel, pixel * width, pixel * width * height];
    let steps = [1, map.steps[0], map.steps[1], 1];
    let mut made = MaybeUninit::<sys::CUtensorMap>::uninit();
    // SAFETY: four dimensions, of which two are walked by pixels. The driver writes the whole map or fails.
    let done = unsafe {
        sys::cuTensorMapEncodeIm2col(
            made.as_mut_ptr(),
            element(map.dtype),
            4,
            address as *mut c_void,
            map.dims.as_ptr(),
            strides.as_ptr(),
            map.first.as_ptr(),
            map.last.as_ptr(),
            map.tile[0],
            map.tile[1],
            steps.as_ptr(),
            Interleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            permutation(map.swizzle),
            Promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            Fill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    };
    encoded(done, made, || format!("{map:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_drivers_are_told_what_is_needed() {
        assert!(new_enough(13000, 13000).is_ok() && new_enough(13010, 12080).is_ok());
        assert!(new_enough(13000, 13030).is_ok(), "minor versions are compatible");
        let error = new_enough(12040, 13000).unwrap_err();
        assert_eq!((error.code, error.exit_code()), ("cuda.old_driver", 11));
        assert!(error.to_string().contains("CUDA 12.4; CUDA 13.0 is needed, which is driver 580"), "{error}");
    }
}

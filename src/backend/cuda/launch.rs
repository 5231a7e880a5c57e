//! What a step does on the device, before addresses are known: kernels with grids and arguments.
//!
//! **Architecture Invariant:** lowering is a pure function of operation, types and architecture. It runs when a plan is
//! made, to learn which modules to compile, and again when it is loaded, to fill in addresses; both times with the same
//! answer.

use lite3r_ir::DType;

/// A step on the device.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Lowered {
    /// In order; a later one reads what an earlier one wrote.
    pub launches: Vec<Launch>,
    /// Bytes of scratch memory that they share.
    pub scratch: usize,
}

impl From<Launch> for Lowered {
    fn from(launch: Launch) -> Self {
        Self { launches: vec![launch], scratch: 0 }
    }
}

/// One launch of one kernel.
#[derive(Clone, Debug, PartialEq)]
pub struct Launch {
    /// Where the kernel is.
    pub module: Module,
    /// Its name in the module, `extern "C"`.
    pub function: &'static str,
    /// Blocks in x, y and z; no launch if one of them is 0.
    pub grid: [u32; 3],
    /// Threads a block.
    pub block: u32,
    /// Bytes of dynamic shared memory a block.
    pub shared: u32,
    /// In the order of the kernel's parameters.
    pub args: Vec<Arg>,
}

/// Threads a block of kernels that loop over elements.
pub const THREADS: u32 = 256;

impl Launch {
    /// Of a kernel that loops over work for so many threads, however few there are.
    pub fn over(module: Module, function: &'static str, threads: u64, args: Vec<Arg>) -> Self {
        Self { module, function, grid: [blocks(threads, THREADS), 1, 1], block: THREADS, shared: 0, args }
    }
}

/// A source file with its specialisation: one cubin.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Module {
    /// A file of `cuda/`: `elementwise.cu`.
    pub file: &'static str,
    /// Macros, in the order of the row that lowers to it.
    pub defines: Vec<(&'static str, String)>,
}

impl Module {
    /// A file without macros.
    pub fn new(file: &'static str) -> Self {
        Self { file, defines: Vec::new() }
    }

    /// With one macro more.
    pub fn define(mut self, name: &'static str, value: impl ToString) -> Self {
        self.defines.push((name, value.to_string()));
        self
    }

    /// With a macro that names the C++ type of elements, see `cuda/include/types.cuh`.
    pub fn element(self, name: &'static str, dtype: DType) -> Self {
        self.define(name, c_type(dtype))
    }

    /// As plans name it: `elementwise.cu T=float EXPR=-a`.
    pub fn key(&self) -> String {
        let mut key = self.file.to_string();
        self.defines.iter().for_each(|(name, value)| key += &format!(" {name}={value}"));
        key
    }
}

/// The C++ type of elements in `cuda/include/types.cuh`.
pub const fn c_type(dtype: DType) -> &'static str {
    match dtype {
        DType::F64 => "double",
        DType::F32 => "float",
        DType::F16 => "half_t",
        DType::BF16 => "bf16_t",
        DType::F8E4M3 => "e4m3_t",
        DType::F8E5M2 => "e5m2_t",
        DType::I64 => "i64",
        DType::I32 => "i32",
        DType::U8 => "u8",
        DType::Bool => "bool_t",
    }
}

/// A parameter of a kernel.
#[derive(Clone, Debug, PartialEq)]
pub enum Arg {
    /// An address.
    Pointer(Pointer),
    /// An address that there is not: an optional operand left out.
    Null,
    /// Plain bytes: a number, or a structure passed by value.
    Value(Vec<u8>),
    /// A tensor map of the copy engine, 128 bytes by value.
    TensorMap(TensorMap),
    /// The same of columns of pixels.
    PixelMap(PixelMap),
}

impl Arg {
    /// Plain data by value, laid out as C++ lays it out.
    pub fn of<T: bytemuck::NoUninit>(value: T) -> Self {
        Self::Value(bytemuck::bytes_of(&value).to_vec())
    }

    /// An operand.
    pub fn operand(index: usize) -> Self {
        Self::Pointer(Pointer { base: Base::Operand(index), offset: 0 })
    }

    /// An operand that may be left out.
    pub fn maybe(index: Option<usize>) -> Self {
        index.map_or(Self::Null, Self::operand)
    }

    /// A result.
    pub fn result(index: usize) -> Self {
        Self::Pointer(Pointer { base: Base::Result(index), offset: 0 })
    }

    /// The step's scratch memory from this byte on.
    pub fn scratch(offset: usize) -> Self {
        Self::Pointer(Pointer { base: Base::Scratch, offset: offset as u64 })
    }
}

/// An address, relative.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pointer {
    /// To what.
    pub base: Base,
    /// In bytes.
    pub offset: u64,
}

/// What an address is relative to. All are aligned to 256 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    /// An operand of the step.
    Operand(usize),
    /// A result of the step.
    Result(usize),
    /// The scratch memory of the step.
    Scratch,
}

/// A tile-wise view of a tensor for the copy engine (`cuTensorMapEncodeTiled`). Dimensions stand innermost first.
/// Elements outside read as zero; writes there are dropped.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorMap {
    /// Of the tensor; 16-byte aligned.
    pub base: Pointer,
    /// Element type.
    pub dtype: DType,
    /// Sizes.
    pub dims: Vec<u64>,
    /// Bytes from one index to the next, of all dimensions but the innermost; multiples of 16.
    pub strides: Vec<u64>,
    /// The box that one copy spans; at most 256 along each dimension.
    pub tile: Vec<u32>,
    /// Elements of the tensor from one element of the box to the next.
    pub steps: Vec<u32>,
    /// How 16-byte chunks are permuted in shared memory.
    pub swizzle: Swizzle,
}

/// A view of dense images [N, H, W, C] by columns of pixels for the copy engine (`cuTensorMapEncodeIm2col`): the channels
/// of one pixel after the other, row by row and image by image, as far as a window of taps has places. What lies outside
/// of an image reads as zero.
#[derive(Clone, Debug, PartialEq)]
pub struct PixelMap {
    /// Of the images; 16-byte aligned.
    pub base: Pointer,
    /// Element type; 16 bytes of channels or a multiple.
    pub dtype: DType,
    /// Channels, width, height, images.
    pub dims: [u64; 4],
    /// Columns and rows of the first place, from the first pixel: zeros to the left and above, negative.
    pub first: [i32; 2],
    /// And of the last place, from the last pixel.
    pub last: [i32; 2],
    /// Columns and rows from place to place; at most 8.
    pub steps: [u32; 2],
    /// The channels and pixels that one copy spans.
    pub tile: [u32; 2],
    /// How 16-byte chunks are permuted in shared memory.
    pub swizzle: Swizzle,
}

/// Which permutation of 16-byte chunks; the name is the span in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Swizzle {
    /// None.
    None,
    /// Of 32 bytes.
    B32,
    /// Of 64 bytes.
    B64,
    /// Of 128 bytes.
    B128,
}

/// Streaming multiprocessors of the device that grids and tiles are chosen for, an H100 or H200. Others run the same
/// grids in more waves.
pub const PROCESSORS: usize = 132;
/// Bytes of shared memory that a block on Hopper may have.
pub const SHARED: usize = 227 << 10;

/// Blocks of a grid-stride loop over `n` elements with `threads` a block: enough to fill any device, no more.
pub fn blocks(n: u64, threads: u32) -> u32 {
    n.div_ceil(u64::from(threads)).min(PROCESSORS as u64 * 16) as u32
}

/// The type of element indices: 32 bits where they suffice, since 64-bit division is slow.
pub const fn index_type(elements: u64) -> &'static str {
    if elements < 1 << 31 { "u32" } else { "u64" }
}

//! One error type for the whole crate: a kind that decides the exit code, a stable code that scripts can match,
//! and every problem found, not only the first.

use std::fmt;

/// What went wrong, as far as a calling script needs to know. The discriminants are the exit codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The command line or an API call makes no sense.
    Usage = 2,
    /// The model needs something that lite3r does not have.
    Unsupported = 3,
    /// A file is missing, damaged, hostile, or not what it should be.
    BadFile = 4,
    /// The device, in a way that has no kind of its own.
    Device = 5,
    /// A result missed the accuracy that was asked for.
    Accuracy = 6,
    /// There is no driver for the device.
    NoDriver = 10,
    /// The driver is too old for the machine code of a plan.
    OldDriver = 11,
    /// The device is of another generation than the plan.
    Architecture = 12,
    /// The compiler of kernels is missing or fails.
    Compiler = 13,
    /// More memory than there is.
    Memory = 14,
    /// A kernel failed while it ran.
    Kernel = 15,
    /// A result is not finite.
    NotFinite = 16,
}

/// An error with all its problems.
#[derive(Clone, Debug, PartialEq)]
pub struct Error {
    /// Decides the exit code.
    pub kind: Kind,
    /// Stable, dotted and lower case: `onnx.unsupported_op`, `plan.truncated`.
    pub code: &'static str,
    /// At least one; each names the file, the node or the limit.
    pub problems: Vec<String>,
}

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error with one problem.
    pub fn new(kind: Kind, code: &'static str, problem: impl Into<String>) -> Self {
        Self { kind, code, problems: vec![problem.into()] }
    }

    /// An error with many problems; the caller has made sure that there is one.
    pub fn all(kind: Kind, code: &'static str, problems: Vec<String>) -> Self {
        debug_assert!(!problems.is_empty());
        Self { kind, code, problems }
    }

    /// [`Kind::Usage`] with one problem.
    pub fn usage(code: &'static str, problem: impl Into<String>) -> Self {
        Self::new(Kind::Usage, code, problem)
    }

    /// [`Kind::Unsupported`] with one problem.
    pub fn unsupported(code: &'static str, problem: impl Into<String>) -> Self {
        Self::new(Kind::Unsupported, code, problem)
    }

    /// [`Kind::BadFile`] with one problem.
    pub fn bad_file(code: &'static str, problem: impl Into<String>) -> Self {
        Self::new(Kind::BadFile, code, problem)
    }

    /// [`Kind::Device`] with one problem.
    pub fn device(code: &'static str, problem: impl Into<String>) -> Self {
        Self::new(Kind::Device, code, problem)
    }

    /// An input/output failure on a named file.
    pub fn io(path: &std::path::Path, what: &str, error: &std::io::Error) -> Self {
        Self::bad_file("file.io", format!("{}: {what}: {error}", path.display()))
    }

    /// What the process exits with, see [`Kind`].
    pub fn exit_code(&self) -> u8 {
        self.kind as u8
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.problems.as_slice() {
            [one] => write!(f, "[{}] {one}", self.code),
            many => {
                write!(f, "[{}] {} problems", self.code, many.len())?;
                many.iter().try_for_each(|p| write!(f, "\n  - {p}"))
            }
        }
    }
}

impl std::error::Error for Error {}

//! What machine code says about itself: which instructions the kernels of a cubin are made of.
//!
//! A cubin is an ELF file with a section `.text.NAME` for every kernel. Instructions of `sm_70` and later are 16 bytes
//! long, the operation in the low 12 bits of the first word. The numbers were read off `nvdisasm -hex` (CUDA 13) for
//! code of `sm_80`, `sm_89` and `sm_90a`, which agree.

/// The 12 bits of operations that are looked for.
pub mod op {
    /// `ACQBULK`, PTX `griddepcontrol.wait`.
    pub const WAIT_FOR_LAUNCH: u16 = 0x82e;
    /// `LD`, `LDG`, `ST`, `STG`, `ATOM`, `RED` and their forms, `LDGSTS`: global memory by threads.
    pub const GLOBAL: [u16; 11] = [0x980, 0x981, 0x985, 0x986, 0x98a, 0x98e, 0x9a3, 0x9a6, 0x9a8, 0x9a9, 0xfae];
    /// `UTMALDG`, `UTMASTG`, `UBLKCP`: global memory by the copy engine.
    pub const COPY_ENGINE: [u16; 3] = [0x5b4, 0x3b5, 0x3ba];
    /// `LDL` and `STL`: local memory, where registers did not suffice or an index was not known.
    pub const LOCAL: [u16; 2] = [0x983, 0x387];
    /// `HGMMA` with both operands in shared memory, and with the left one in registers; `QGMMA`: PTX `wgmma`.
    pub const WGMMA: [u16; 4] = [0x9f0, 0xdf0, 0x9f3, 0xdf3];
    /// `HMMA` and `QMMA`: PTX `mma.sync`.
    pub const MMA: [u16; 2] = [0x23c, 0x27a];
}

/// A kernel of a cubin.
#[derive(Clone, Copy, Debug)]
pub struct Kernel<'c> {
    /// Its name.
    pub name: &'c str,
    code: &'c [u8],
}

impl<'c> Kernel<'c> {
    /// The operations, in the order of their addresses.
    pub fn operations(self) -> impl Iterator<Item = u16> + 'c {
        self.code.chunks_exact(16).map(|word| u16::from_le_bytes([word[0], word[1]]) & 0xfff)
    }

    /// How many of these operations there are.
    pub fn count(self, wanted: &[u16]) -> usize {
        self.operations().filter(|op| wanted.contains(op)).count()
    }

    /// Whether it waits for the launch in front before it touches global memory, so that both may overlap.
    pub fn waits(self) -> bool {
        let touches = |op: &u16| op::GLOBAL.contains(op) || op::COPY_ENGINE.contains(op);
        self.operations().find(|op| *op == op::WAIT_FOR_LAUNCH || touches(op)) == Some(op::WAIT_FOR_LAUNCH)
    }
}

/// The kernels of a cubin; `None` for what is no 64-bit ELF file.
pub fn kernels(cubin: &[u8]) -> Option<Vec<Kernel<'_>>> {
    if cubin.get(..5)? != b"\x7fELF\x02" {
        return None;
    }
    let sections = usize::try_from(number(cubin, 40, 8)?).ok()?;
    let (size, count, names) = (number(cubin, 58, 2)?, number(cubin, 60, 2)?, number(cubin, 62, 2)?);
    let header = |index: u64| cubin.get(sections.checked_add(usize::try_from(index * size).ok()?)?..);
    let content = |header: &[u8]| {
        let (start, bytes) = (number(header, 24, 8)?, number(header, 32, 8)?);
        cubin.get(usize::try_from(start).ok()?..usize::try_from(start.checked_add(bytes)?).ok()?)
    };
    let names = content(header(names)?)?;
    let mut kernels = Vec::new();
    for index in 0..count {
        let header = header(index)?;
        let name = names.get(usize::try_from(number(header, 0, 4)?).ok()?..)?;
        let name = std::str::from_utf8(name.split(|byte| *byte == 0).next()?).ok()?;
        if let Some(name) = name.strip_prefix(".text.") {
            kernels.push(Kernel { name, code: content(header)? });
        }
    }
    Some(kernels)
}

/// A little-endian number of an ELF file.
fn number(bytes: &[u8], at: usize, length: usize) -> Option<u64> {
    let bytes = bytes.get(at..at.checked_add(length)?)?;
    Some(bytes.iter().rev().fold(0, |n, byte| n << 8 | u64::from(*byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ELF file with one kernel of these operations.
    fn elf(operations: &[u16]) -> Vec<u8> {
        let names = b"\0.shstrtab\0.text.k\0";
        let mut file = vec![0u8; 64];
        file[..5].copy_from_slice(b"\x7fELF\x02");
        let text = file.len();
        for op in operations {
            // A predicate or a register in the upper bits does not matter.
            file.extend((op | 0x7000).to_le_bytes());
            file.extend([0xff; 14]);
        }
        let strings = file.len();
        file.extend(names);
        let sections = file.len();
        let mut section = |name: u32, start: usize, bytes: usize| {
            let mut header = [0u8; 64];
            header[..4].copy_from_slice(&name.to_le_bytes());
            header[24..32].copy_from_slice(&(start as u64).to_le_bytes());
            header[32..40].copy_from_slice(&(bytes as u64).to_le_bytes());
            file.extend(header);
        };
        section(0, 0, 0);
        section(1, strings, names.len());
        section(11, text, operations.len() * 16);
        file[40..48].copy_from_slice(&(sections as u64).to_le_bytes());
        file[58..64].copy_from_slice(&[64, 0, 3, 0, 1, 0]);
        file
    }

    #[test]
    fn operations_are_found() {
        let file = elf(&[0x82e, 0x981, 0x9f3, 0x9f3, 0x387]);
        let [kernel] = kernels(&file).unwrap()[..] else { panic!("one kernel") };
        assert_eq!((kernel.name, kernel.count(&op::WGMMA), kernel.count(&op::LOCAL)), ("k", 2, 1));
        assert!(kernel.waits());
    }

    #[test]
    fn a_kernel_that_touches_memory_first_does_not_wait() {
        for operations in [[0x981, 0x82e], [0x5b4, 0x82e], [0x7918 & 0xfff, 0x986]] {
            assert!(!kernels(&elf(&operations)).unwrap()[0].waits(), "{operations:x?}");
        }
    }

    #[test]
    fn damaged_files_are_refused() {
        let file = elf(&[0x82e]);
        assert!(kernels(b"ELF").is_none());
        // Nothing reads the end of the last section's header.
        (0..file.len() - 24).for_each(|end| assert!(kernels(&file[..end]).is_none(), "cut at {end}"));
    }
}

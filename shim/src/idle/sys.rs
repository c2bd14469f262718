#![allow(unsafe_code)]
//! The program's own pages.

use std::ffi::c_void;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;

/// More segments than a linker makes of what is only read: constants, and text.
const MOST: usize = 4;

/// Takes the program's constants and text out of the address space; they stay in the page cache, and each page comes back
/// with the next use. A segment stays that other shims have as well, or that has a page which is not the file's any more,
/// as a debugger's breakpoint makes it.
///
/// The text goes last, and nothing is left to be freed then: what still runs brings its pages back, with their neighbours.
pub(super) fn unmap_program() {
    let mut ranges: [Range<usize>; MOST] = Default::default();
    // SAFETY: the callback is called during this call only, with the array's address, which nobody else uses meanwhile.
    unsafe { libc::dl_iterate_phdr(Some(read_only_segments), (&raw mut ranges).cast()) };
    for range in &mut ranges {
        if is_ours_alone(range) != Some(true) {
            *range = 0..0;
        }
    }
    for range in ranges {
        // SAFETY: an empty range is no work. Any other lies within a segment of this program that is mapped from its file,
        // privately and never writable, and none of its pages has been written by anybody else either: what is dropped is
        // read from the same file at the next access.
        unsafe { libc::madvise(range.start as *mut c_void, range.len(), libc::MADV_DONTNEED) };
    }
}

/// The whole pages of the first object's (the program's) segments that are mapped and never writable. Constants that are
/// relocated and then protected belong to a segment that is writable.
unsafe extern "C" fn read_only_segments(
    object: *mut libc::dl_phdr_info,
    _size: usize,
    ranges: *mut c_void,
) -> i32 {
    // SAFETY: `unmap_program` hands over its array, to which nobody else refers while this runs.
    let ranges = unsafe { &mut *ranges.cast::<[Range<usize>; MOST]>() };
    // SAFETY: the C library hands over a valid description, whose header table is mapped as long as the object is.
    let (base, headers) = unsafe {
        let object = &*object;
        let count = usize::from(object.dlpi_phnum);
        (
            object.dlpi_addr,
            std::slice::from_raw_parts(object.dlpi_phdr, count),
        )
    };
    let page = page_size();
    let segments = headers
        .iter()
        .filter(|one| one.p_type == libc::PT_LOAD && one.p_flags & libc::PF_W == 0)
        .filter_map(|one| {
            let start = usize::try_from(base.checked_add(one.p_vaddr)?).ok()?;
            let end = start.checked_add(usize::try_from(one.p_filesz).ok()?)?;
            // A page at a border may belong to the next segment as well.
            Some(start.next_multiple_of(page)..end / page * page)
        })
        .filter(|range| range.start < range.end);
    for (range, segment) in ranges.iter_mut().zip(segments) {
        *range = segment;
    }
    1
}

/// Whether the pages of a range that are there are the file's, and most of them in no other process: what several shims
/// have in common costs none of them anything, and is worth its time at the next request. None: the kernel does not say.
fn is_ours_alone(range: &Range<usize>) -> Option<bool> {
    /// Of pagemap in proc(5).
    const PRESENT: u64 = 1 << 63;
    const SWAPPED: u64 = 1 << 62;
    const OF_A_FILE: u64 = 1 << 61;
    const MAPPED_ONCE: u64 = 1 << 56;
    const ENTRY: usize = size_of::<u64>();
    let page = page_size();
    let table = File::open("/proc/self/pagemap").ok()?;
    let mut entries = [0; 512 * ENTRY];
    let (mut next, end) = (range.start / page * ENTRY, range.end / page * ENTRY);
    let (mut present, mut alone) = (0, 0);
    while next < end {
        let some = entries.get_mut(..(end - next).min(512 * ENTRY))?;
        table.read_exact_at(some, u64::try_from(next).ok()?).ok()?;
        next += some.len();
        let (words, _) = some.as_chunks::<ENTRY>();
        for word in words.iter().map(|word| u64::from_ne_bytes(*word)) {
            if word & SWAPPED != 0 || word & PRESENT != 0 && word & OF_A_FILE == 0 {
                return Some(false);
            }
            present += u32::from(word & PRESENT != 0);
            alone += u32::from(word & PRESENT != 0 && word & MAPPED_ONCE != 0);
        }
    }
    Some(alone * 2 > present)
}

fn page_size() -> usize {
    // SAFETY: an integer.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(size).unwrap_or(4096)
}

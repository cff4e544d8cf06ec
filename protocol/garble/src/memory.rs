//! Large buffers on large pages.
//!
//! The buffers of a layer of ReLUs are tens of megabytes, and their first touch is page faults: on virtual machines, with
//! pages of 4 KiB, several times as dear as all cryptography on what they hold. Linux gives 2 MiB at a fault if asked to.

/// Returns an empty vector with room for `count` values, on large pages where the system has them and `count` is large.
///
/// The same memory otherwise: nothing depends on the answer of the system.
pub fn with_capacity<T>(count: usize) -> Vec<T> {
    let vec = Vec::with_capacity(count);
    advise(&vec);
    vec
}

/// Returns `count` copies of `value` in memory from [`with_capacity`].
pub fn filled<T: Clone>(value: T, count: usize) -> Vec<T> {
    let mut vec = with_capacity(count);
    vec.resize(count, value);
    vec
}

/// Returns `count` zero bytes that are not touched yet if the allocator has such: whoever writes them first, on whatever
/// thread, gets the pages.
pub fn zeroed(count: usize) -> Vec<u8> {
    let vec = vec![0; count];
    advise(&vec);
    vec
}

#[cfg(all(target_os = "linux", not(miri)))]
fn advise<T>(vec: &Vec<T>) {
    use std::ffi::{c_int, c_void};
    unsafe extern "C" {
        fn madvise(address: *mut c_void, length: usize, advice: c_int) -> c_int;
    }
    /// `MADV_HUGEPAGE` of `linux/mman.h`, the same number on all architectures.
    const HUGE_PAGE: c_int = 14;
    const PAGE_BYTES: usize = 1 << 21;
    let start = vec.as_ptr().addr().next_multiple_of(PAGE_BYTES);
    let end = vec.as_ptr().addr() + vec.capacity() * size_of::<T>();
    if end.saturating_sub(start) >= PAGE_BYTES {
        let length = (end - start) / PAGE_BYTES * PAGE_BYTES;
        let first = vec.as_ptr().with_addr(start).cast_mut().cast();
        // SAFETY: `first..first + length` are whole pages inside the allocation of `vec`; the advice changes neither their
        // content nor their protection, and a refusal leaves everything as it is.
        unsafe { madvise(first, length, HUGE_PAGE) };
    }
}

#[cfg(not(all(target_os = "linux", not(miri))))]
fn advise<T>(_: &Vec<T>) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_of_all_sizes_hold_their_values() {
        for count in [0, 1, 100, 1 << 18, (5 << 18) + 3] {
            assert!(with_capacity::<u64>(count).capacity() >= count);
            let mut buffer = filled(7u64, count);
            assert!(buffer.len() == count && buffer.iter().all(|&value| value == 7));
            buffer.push(8);
            assert_eq!(buffer.pop(), Some(8));
        }
        assert_eq!(filled((), 10).len(), 10);
        assert!(zeroed(40 << 20).iter().all(|&byte| byte == 0));
    }
}

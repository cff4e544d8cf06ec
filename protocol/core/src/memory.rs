//! Large buffers on large pages.
//!
//! The buffers of a layer of ReLUs are tens of megabytes, and every page of them faults when it is
//! first touched. On virtual machines, with pages of 4 KiB, these faults cost several times as much
//! as all cryptography on what the buffers hold. Linux maps 2 MiB at a fault if asked to.

use std::io::Read;
use std::ops::Deref;
use zeroize::{Zeroize, ZeroizeOnDrop};

/// Returns an empty vector with room for `count` values, on large pages where the system has them
/// and `count` is large.
///
/// It is ordinary memory otherwise, and nothing depends on whether the system complies.
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

/// Returns a copy in memory from [`with_capacity`].
pub fn copied<T: Clone>(values: &[T]) -> Vec<T> {
    let mut vec = with_capacity(values.len());
    vec.extend_from_slice(values);
    vec
}

/// Returns `count` zero bytes, untouched where the allocator has such, so that the thread that
/// writes them first takes the page faults.
pub fn zeroed(count: usize) -> Vec<u8> {
    let vec = vec![0; count];
    advise(&vec);
    vec
}

/// Overwrites secret values with zeros at the speed of memory.
///
/// `Zeroize` makes a volatile store for each value, which no vector instruction takes together: for
/// the polynomials of a large layer that costs a seventh of all arithmetic. Here the compiler may
/// choose how it writes, but not whether: behind [`zeroize::optimization_barrier`] the zeros count
/// as read.
pub fn erase<T: Copy + Default>(values: &mut [T]) {
    values.fill(T::default());
    zeroize::optimization_barrier(values);
}

/// Overwrites a vector and its spare memory with zeros, as [`erase`] does, and leaves it with as
/// many zeros as it has room for.
pub fn erase_all<T: Copy + Default>(vec: &mut Vec<T>) {
    let room = vec.capacity();
    vec.clear();
    vec.resize(room, T::default());
    zeroize::optimization_barrier(&vec[..]);
}

/// Secret bytes in a large buffer, erased when dropped.
///
/// `Zeroizing<Vec<u8>>` erases itself by a volatile store for each byte, twice, which for a bundle
/// with all ReLUs of a large network costs as much as garbling it. This type erases itself once, 16
/// bytes at a store.
pub struct SecretBytes(Vec<u8>);

impl SecretBytes {
    /// Returns an empty buffer that never has more than `count` bytes.
    pub fn with_capacity(count: usize) -> Self {
        SecretBytes(with_capacity(count))
    }

    /// Returns the next `count` bytes of a reader, or fewer where it ends.
    ///
    /// # Errors
    /// Those of the reader.
    pub fn read(reader: impl Read, count: usize) -> std::io::Result<Self> {
        let mut bytes = SecretBytes::with_capacity(count);
        reader.take(count as u64).read_to_end(&mut bytes.0)?;
        Ok(bytes)
    }

    /// Appends bytes.
    ///
    /// # Panics
    /// If there is no room: a larger buffer would leave a copy behind.
    pub fn extend_from_slice(&mut self, bytes: &[u8]) {
        assert!(
            bytes.len() <= self.room(),
            "no room for {} bytes",
            bytes.len()
        );
        self.0.extend_from_slice(bytes);
    }

    /// Returns the number of bytes for which there is room.
    pub fn room(&self) -> usize {
        self.0.capacity() - self.0.len()
    }

    /// Returns the bytes.
    #[inline]
    pub fn as_slice(&self) -> &[u8] {
        &self.0
    }

    fn erase(&mut self) {
        let (head, body, tail) = bytemuck::pod_align_to_mut::<u8, u128>(&mut self.0);
        head.zeroize();
        body.zeroize();
        tail.zeroize();
    }
}

impl Deref for SecretBytes {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for SecretBytes {
    fn drop(&mut self) {
        self.erase();
    }
}

impl ZeroizeOnDrop for SecretBytes {}

impl std::fmt::Debug for SecretBytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SecretBytes(.., {} bytes)", self.0.len())
    }
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
        // SAFETY: `first..first + length` are whole pages inside the allocation of `vec`; the
        // advice changes neither their content nor their protection, and a refusal leaves
        // everything as it is.
        unsafe { madvise(first, length, HUGE_PAGE) };
    }
}

#[cfg(not(all(target_os = "linux", not(miri))))]
fn advise<T>(_: &Vec<T>) {}

#[cfg(test)]
mod tests {
    use super::*;

    /// Large enough for large pages, which Miri does not have.
    const LARGE: usize = if cfg!(miri) { 1 << 5 } else { 1 << 18 };

    #[test]
    fn spare_memory_is_erased_with_the_rest() {
        let mut vec = Vec::with_capacity(100);
        vec.extend_from_slice(&[7u64; 90]);
        vec.truncate(10);
        erase(&mut vec[..5]);
        assert_eq!(vec, [[0; 5], [7; 5]].concat());
        let address = vec.as_ptr();
        erase_all(&mut vec);
        assert_eq!((vec.as_ptr(), vec.len()), (address, vec.capacity()));
        assert!(vec.iter().all(|&value| value == 0));
    }

    #[test]
    fn buffers_of_all_sizes_hold_their_values() {
        for count in [0, 1, 100, LARGE, 5 * LARGE + 3] {
            assert!(with_capacity::<u64>(count).capacity() >= count);
            let mut buffer = filled(7u64, count);
            assert!(buffer.len() == count && buffer.iter().all(|&value| value == 7));
            buffer.push(8);
            assert_eq!(buffer.pop(), Some(8));
        }
        assert_eq!(filled((), 10).len(), 10);
        assert!(zeroed(160 * LARGE).iter().all(|&byte| byte == 0));
    }

    #[test]
    fn secret_bytes_are_erased_in_full_and_never_moved() {
        for count in [0, 1, 15, 16, 33, 1000] {
            let mut bytes = SecretBytes::with_capacity(count);
            bytes.extend_from_slice(&vec![7; count]);
            assert_eq!(*bytes, vec![7; count]);
            bytes.erase();
            assert_eq!(*bytes, vec![0; count]);
        }
        let mut read = SecretBytes::read(&[1, 2, 3, 4][..], 3).unwrap();
        assert_eq!(*read, [1, 2, 3]);
        let full = read.room();
        let more = std::panic::AssertUnwindSafe(|| read.extend_from_slice(&vec![0; full + 1]));
        assert!(std::panic::catch_unwind(more).is_err());
        assert_eq!(*SecretBytes::read(&[1, 2][..], 3).unwrap(), [1, 2]);
        assert_eq!(format!("{read:?}"), "SecretBytes(.., 3 bytes)");
    }
}

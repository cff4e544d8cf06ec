//! Whether a JPEG file is whole: it ends with a marker of its own (ITU-T T.81, B.1.1.3 and B.2.1),
//! which this module looks for.

const START_OF_IMAGE: u8 = 0xd8;
const END_OF_IMAGE: u8 = 0xd9;
const START_OF_SCAN: u8 = 0xda;

/// Returns whether the bytes are a JPEG file that ends before its end-of-image marker; `false` for
/// files of other formats.
pub(super) fn is_cut_short(bytes: &[u8]) -> bool {
    if !bytes.starts_with(&[0xff, START_OF_IMAGE]) {
        return false;
    }
    let mut rest = &bytes[2..];
    loop {
        let Some((marker, behind)) = marker(rest) else {
            return true;
        };
        rest = match marker {
            END_OF_IMAGE => return false,
            // Markers without a segment: reserved, and restarts.
            0x01 | 0xd0..=0xd7 => behind,
            // A thumbnail in a segment has an end of its own, which is skipped with the segment.
            _ => match segment(behind) {
                Some(behind) if marker == START_OF_SCAN => behind_scan(behind),
                Some(behind) => behind,
                None => return true,
            },
        };
    }
}

/// The next marker and what follows; fill bytes may come before it.
fn marker(bytes: &[u8]) -> Option<(u8, &[u8])> {
    let start = bytes.iter().position(|&byte| byte == 0xff)?;
    let code = start + bytes[start..].iter().position(|&byte| byte != 0xff)?;
    Some((bytes[code], &bytes[code + 1..]))
}

/// What follows a segment, which begins with its length.
fn segment(bytes: &[u8]) -> Option<&[u8]> {
    let length = u16::from_be_bytes([*bytes.first()?, *bytes.get(1)?]);
    bytes.get(usize::from(length.max(2))..)
}

/// What follows entropy-coded data: in it, 0xff is followed by 0 or by the code of a restart.
fn behind_scan(bytes: &[u8]) -> &[u8] {
    let ends = |pair: &[u8]| pair[0] == 0xff && !matches!(pair[1], 0 | 0xd0..=0xd7);
    let end = bytes.windows(2).position(ends);
    end.map_or(&[], |end| &bytes[end..])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Segments with an end of their own inside, data with stuffed bytes and restarts, two scans.
    const WHOLE: [u8; 34] = [
        0xff, 0xd8, 0xff, 0xe1, 0, 6, 0xff, 0xd9, 1, 2, 0xff, 0xff, 0xc0, 0, 2, 0xff, 0xda, 0, 3,
        9, 7, 0xff, 0, 0xff, 0xd3, 5, 0xff, 0xda, 0, 2, 8, 8, 0xff, 0xd9,
    ];

    #[test]
    fn every_cut_is_found() {
        assert!(!is_cut_short(&WHOLE));
        assert!(!is_cut_short(&[&WHOLE[..], b"a trailer"].concat()));
        for end in 2..WHOLE.len() {
            assert!(is_cut_short(&WHOLE[..end]), "{end}");
        }
    }

    #[test]
    fn other_formats_are_none_of_its_business() {
        assert!(!is_cut_short(b""));
        assert!(!is_cut_short(b"\x89PNG\r\n\x1a\n"));
        assert!(!is_cut_short(&[0xff]));
    }
}

//! Numbers for people: three digits, units that keep them short.

/// A number of bytes, such as `3.83 MB`; units are powers of 1,000, as networks have them.
pub fn bytes(count: u64) -> String {
    match count {
        0 => "0".into(),
        1..1_000 => format!("{count} B"),
        1_000..999_500 => format!("{} KB", digits(count as f64 / 1e3)),
        999_500..999_500_000 => format!("{} MB", digits(count as f64 / 1e6)),
        _ => format!("{} GB", digits(count as f64 / 1e9)),
    }
}

/// A number of bytes on an axis, whose numbers are round: `1.5 MB`, and 0 without a unit.
pub fn round_bytes(count: f64) -> String {
    match count {
        0.0 => "0".into(),
        _ => without_zeros(&bytes(count as u64)),
    }
}

/// A count on an axis, likewise.
pub fn round_count(count: f64) -> String {
    without_zeros(&short(count as u64))
}

/// Seconds on an axis, likewise.
pub fn round_seconds(time: f64) -> String {
    match time {
        0.0 => "0".into(),
        _ => without_zeros(&seconds(time)),
    }
}

/// A predicted time, to two digits from 0.1 ms on.
pub fn seconds(seconds: f64) -> String {
    match seconds {
        9.95.. => format!("{seconds:.0} s"),
        0.995.. => format!("{seconds:.1} s"),
        0.0995.. => format!("{seconds:.2} s"),
        0.00995.. => format!("{:.0} ms", 1e3 * seconds),
        0.00005.. => format!("{:.1} ms", 1e3 * seconds),
        0.0 => "0".into(),
        _ => "< 0.1 ms".into(),
    }
}

/// A count with commas between thousands.
pub fn count(count: u64) -> String {
    let plain = count.to_string();
    let mut text = String::with_capacity(plain.len() + plain.len() / 3);
    for (index, digit) in plain.chars().enumerate() {
        if index > 0 && (plain.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A count to three digits, such as `118 M`.
pub fn short(count: u64) -> String {
    match count {
        0..10_000 => self::count(count),
        10_000..999_500 => format!("{} K", digits(count as f64 / 1e3)),
        999_500..999_500_000 => format!("{} M", digits(count as f64 / 1e6)),
        _ => format!("{} G", digits(count as f64 / 1e9)),
    }
}

/// A share in per cent, such as `31 %`.
pub fn percent(share: f64) -> String {
    let percent = 100.0 * share;
    match percent {
        0.0 => "0 %".into(),
        0.95.. => format!("{percent:.0} %"),
        0.05.. => format!("{percent:.1} %"),
        _ => "< 0.1 %".into(),
    }
}

/// A probability or a distance by its binary logarithm.
pub fn power(log2: f64) -> String {
    if log2 == f64::NEG_INFINITY {
        "0".into()
    } else {
        format!("2^{log2:.1}")
    }
}

/// A speed in bits a second.
pub fn speed(bits_per_second: f64) -> String {
    match bits_per_second {
        1e9.. => without_zeros(&format!("{} Gbit/s", digits(bits_per_second / 1e9))),
        _ => without_zeros(&format!("{} Mbit/s", digits(bits_per_second / 1e6))),
    }
}

/// Three digits of a number below 1,000.
fn digits(value: f64) -> String {
    match value {
        99.95.. => format!("{value:.0}"),
        9.995.. => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// A number with its unit, without the zeros that end its fraction.
fn without_zeros(text: &str) -> String {
    let (number, unit) = text.split_once(' ').unwrap_or((text, ""));
    let number = match number.contains('.') {
        true => number.trim_end_matches('0').trim_end_matches('.'),
        false => number,
    };
    format!("{number} {unit}").trim_end().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_change_where_three_digits_are_used_up() {
        let cases = [
            (0, "0"),
            (999, "999 B"),
            (1_000, "1.00 KB"),
            (22_188, "22.2 KB"),
            (652_513, "653 KB"),
            (999_499, "999 KB"),
            (999_500, "1.00 MB"),
            (3_828_172, "3.83 MB"),
            (99_960_000, "100 MB"),
            (999_500_000, "1.00 GB"),
            (u64::MAX, "18446744074 GB"),
        ];
        for (value, text) in cases {
            assert_eq!(bytes(value), text);
        }
        assert_eq!(round_bytes(1.5e6), "1.5 MB");
        assert_eq!(round_bytes(0.0), "0");
        assert_eq!(round_count(20_000.0), "20 K");
        assert_eq!(round_count(500.0), "500");
        assert_eq!(short(9_999), "9,999");
        assert_eq!(short(118_147_360), "118 M");
        assert_eq!(short(2_454_115_328), "2.45 G");
        assert_eq!(count(0), "0");
        assert_eq!(count(1_972_802), "1,972,802");
        assert_eq!(speed(1e9), "1 Gbit/s");
        assert_eq!(speed(100e6), "100 Mbit/s");
    }

    #[test]
    fn times_have_two_digits() {
        let cases = [
            (0.0, "0"),
            (0.00001, "< 0.1 ms"),
            (0.0021, "2.1 ms"),
            (0.0204, "20 ms"),
            (0.0996, "0.10 s"),
            (0.504, "0.50 s"),
            (0.997, "1.0 s"),
            (3.21, "3.2 s"),
            (36.8, "37 s"),
        ];
        for (value, text) in cases {
            assert_eq!(seconds(value), text);
        }
        assert_eq!(round_seconds(0.2), "0.2 s");
        assert_eq!(round_seconds(20.0), "20 s");
        for (share, text) in [
            (0.0, "0 %"),
            (0.0001, "< 0.1 %"),
            (0.004, "0.4 %"),
            (0.314, "31 %"),
        ] {
            assert_eq!(percent(share), text);
        }
        assert_eq!(power(f64::NEG_INFINITY), "0");
        assert_eq!(power(-16.24), "2^-16.2");
    }
}

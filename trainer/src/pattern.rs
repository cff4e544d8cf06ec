//! Patterns of names of sites, convolutions and parameters.

/// Returns true if the whole of `name` matches `pattern`, in which each `*` stands for any number
/// of characters, none included.
pub fn fits(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = name.strip_prefix(first) else {
        return false;
    };
    let mut parts = parts.peekable();
    if parts.peek().is_none() {
        return rest.is_empty();
    }
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        // The first place is as good as any: what is left of the pattern has the longest rest to
        // fit.
        let Some(at) = rest.find(part) else {
            return false;
        };
        rest = &rest[at + part.len()..];
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_fit_whole_names() {
        for (pattern, name, expected) in [
            ("*.weight", "stem.conv.weight", true),
            ("*.weight", "stem.conv.weights", false),
            ("stage1.*", "stage1.block1.a.conv.weight", true),
            ("stage1.*", "stage11.block1.a.conv.weight", false),
            ("stage1*", "stage1.block2.act", true),
            ("*.a.act", "stage1.block2.a.act", true),
            ("*.a.act", "stage1.block2.act", false),
            ("stage*.block2*act", "stage3.block2.a.act", true),
            ("stage*.block2*act", "stage3.block1.a.act", false),
            ("*.block?.*", "stage1.block1.a", false),
            ("a*b*c", "aXbYbZc", true),
            ("a*b*c", "aXc", false),
            ("*", "", true),
            ("stem", "stem.act", false),
            ("dense.bias", "dense.bias", true),
            ("ab*ba", "aba", false),
            ("a*a", "a", false),
        ] {
            assert_eq!(fits(pattern, name), expected, "{pattern} on {name}");
        }
    }
}

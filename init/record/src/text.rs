//! Cutting text without cutting a character.

/// The longest beginning of `text` with at most `max` bytes.
pub(crate) fn head(text: &str, max: usize) -> &str {
    let mut end = max.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// The longest end of `text` with at most `max` bytes.
pub(crate) fn tail(text: &str, max: usize) -> &str {
    let mut start = text.len().saturating_sub(max);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    &text[start..]
}

#[cfg(test)]
mod tests {
    use super::{head, tail};

    #[test]
    fn characters_stay_whole() {
        assert_eq!((head("aé", 2), tail("éa", 2)), ("a", "a"));
        assert_eq!((head("aé", 3), tail("éa", 9)), ("aé", "éa"));
        assert_eq!((head("", 5), tail("abc", 0)), ("", ""));
    }
}

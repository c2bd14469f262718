//! Numbers as text, in the forms Go prints.

use serde_json::{Number, Value};

/// The text of a scalar whose field wants text: YAML's `name: 0` means `"0"`, `name: y` means
/// `"true"`. `None` when the value is no scalar, or null.
pub(crate) fn scalar_as_text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Bool(flag) => Some(flag.to_string()),
        Value::Number(number) => Some(number_as_text(number)),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

/// Integers as they are; floats in the shortest form of single precision, with an exponent
/// outside 1e-4 to 1e6 (Go's format `g` of 32 bits).
pub(crate) fn number_as_text(number: &Number) -> String {
    if number.is_i64() || number.is_u64() {
        return number.to_string();
    }
    #[allow(
        clippy::cast_possible_truncation,
        reason = "single precision is what Go prints"
    )]
    let value = number.as_f64().unwrap_or_default() as f32;
    let scientific = format!("{value:e}");
    let Some((digits, exponent)) = scientific.split_once('e') else {
        return scientific;
    };
    let exponent: i32 = exponent.parse().unwrap_or_default();
    if !(-4..6).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{digits}e{sign}{:02}", exponent.unsigned_abs());
    }
    format!("{value}")
}

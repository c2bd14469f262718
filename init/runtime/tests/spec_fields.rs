//! `docs/spec-fields.md` names every field of `config.json` that oci-spec knows, and no other.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt;

use oci_spec::runtime::Spec;
use serde::Deserialize;
use serde::de::value::StrDeserializer;
use serde::de::{
    DeserializeSeed, Deserializer, EnumAccess, MapAccess, SeqAccess, VariantAccess, Visitor,
};

/// Parts of `Spec` that are not for Linux.
const ELSEWHERE: [&str; 4] = ["solaris", "windows", "vm", "zos"];

/// Answers whatever a type asks for, and writes down the names of all fields that it asks about: those of a derived
/// `Deserialize` are told to `deserialize_struct`.
#[derive(Clone)]
struct Ask<'a> {
    path: String,
    found: &'a RefCell<BTreeSet<String>>,
}

#[derive(Debug)]
struct Refused(String);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refused {}

impl serde::de::Error for Refused {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self(message.to_string())
    }
}

impl Ask<'_> {
    fn below(&self, name: &str) -> Self {
        let dot = if self.path.is_empty() || name == "[]" {
            ""
        } else {
            "."
        };
        Self {
            path: format!("{}{dot}{name}", self.path),
            found: self.found,
        }
    }
}

macro_rules! numbers {
    ($($method:ident $visit:ident)+) => { $(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
            visitor.$visit(Default::default())
        }
    )+ };
}

macro_rules! texts {
    ($($method:ident)+) => { $(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
            // Two kinds of text are not free: names of capabilities, which are no derived enumeration, and lists of CPUs.
            let name = self.path.starts_with("process.capabilities");
            visitor.visit_str(if name { "CAP_CHOWN" } else { "0" })
        }
    )+ };
}

impl<'de> Deserializer<'de> for Ask<'_> {
    type Error = Refused;

    numbers! {
        deserialize_bool visit_bool
        deserialize_i8 visit_i8 deserialize_i16 visit_i16 deserialize_i32 visit_i32 deserialize_i64 visit_i64
        deserialize_u8 visit_u8 deserialize_u16 visit_u16 deserialize_u32 visit_u32 deserialize_u64 visit_u64
        deserialize_f32 visit_f32 deserialize_f64 visit_f64
    }

    texts! { deserialize_any deserialize_str deserialize_string deserialize_char deserialize_identifier }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Refused> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        visitor.visit_seq(Once(Some(self.below("[]"))))
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        // Keys that a document chooses.
        let names = [self.below("*")]
            .into_iter()
            .map(|ask| ("*", ask))
            .collect();
        visitor.visit_map(Fields { names, next: None })
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Refused> {
        let mut names = Vec::new();
        for field in fields {
            if self.path.is_empty() && ELSEWHERE.contains(field) {
                continue;
            }
            let below = self.below(field);
            self.found.borrow_mut().insert(below.path.clone());
            names.push((*field, below));
        }
        names.reverse();
        visitor.visit_map(Fields { names, next: None })
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Refused> {
        visitor.visit_enum(First(variants[0]))
    }

    serde::forward_to_deserialize_any! {
        i128 u128 bytes byte_buf unit unit_struct tuple tuple_struct ignored_any
    }
}

struct Fields<'a> {
    names: Vec<(&'static str, Ask<'a>)>,
    next: Option<Ask<'a>>,
}

impl<'de> MapAccess<'de> for Fields<'_> {
    type Error = Refused;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Refused> {
        let Some((name, ask)) = self.names.pop() else {
            return Ok(None);
        };
        self.next = Some(ask);
        seed.deserialize(StrDeserializer::new(name)).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Refused> {
        let ask = self.next.take().unwrap();
        let path = ask.path.clone();
        seed.deserialize(ask)
            .map_err(|refused| match refused.0.starts_with("at ") {
                true => refused,
                false => Refused(format!("at {path}: {refused}")),
            })
    }
}

struct Once<'a>(Option<Ask<'a>>);

impl<'de> SeqAccess<'de> for Once<'_> {
    type Error = Refused;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Refused> {
        self.0.take().map(|ask| seed.deserialize(ask)).transpose()
    }
}

struct First(&'static str);

impl<'de> EnumAccess<'de> for First {
    type Error = Refused;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), Refused> {
        Ok((seed.deserialize(StrDeserializer::new(self.0))?, self))
    }
}

impl<'de> VariantAccess<'de> for First {
    type Error = Refused;

    fn unit_variant(self) -> Result<(), Refused> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, _: T) -> Result<T::Value, Refused> {
        Err(Refused(format!("{} holds something", self.0)))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, _: V) -> Result<V::Value, Refused> {
        Err(Refused(format!("{} holds something", self.0)))
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Refused> {
        Err(Refused(format!("{} holds something", self.0)))
    }
}

/// Every field of the specification as oci-spec has it.
fn known() -> BTreeSet<String> {
    let found = RefCell::default();
    let all = Spec::deserialize(Ask {
        path: String::new(),
        found: &found,
    });
    // Whole: a type that breaks off has not asked for all of its fields.
    all.unwrap_or_else(|refused| panic!("the walk ended early: {refused}"));
    found.into_inner()
}

/// The first column of the tables: fields in backquotes, several of them with braces.
fn listed() -> Vec<String> {
    let text = include_str!("../docs/spec-fields.md");
    let fields = |line: &'static str| Some(line.strip_prefix("| `")?.split_once('`')?.0);
    text.lines().filter_map(fields).flat_map(expanded).collect()
}

/// `a{b,c}` is `ab` and `ac`; there are no braces within braces.
fn expanded(pattern: &str) -> Vec<String> {
    let Some((before, rest)) = pattern.split_once('{') else {
        return vec![pattern.to_owned()];
    };
    let (choices, after) = rest.split_once('}').unwrap();
    choices
        .split(',')
        .flat_map(|choice| expanded(&format!("{before}{choice}{after}")))
        .collect()
}

#[test]
fn the_list_of_fields_is_whole() {
    let known = known();
    let listed = listed();
    let mut once = BTreeSet::new();
    let twice: Vec<_> = listed.iter().filter(|field| !once.insert(*field)).collect();
    assert!(twice.is_empty(), "listed twice: {twice:?}");
    let missing: Vec<_> = known.iter().filter(|field| !once.contains(field)).collect();
    assert!(
        missing.is_empty(),
        "not in docs/spec-fields.md: {missing:#?}"
    );
    let unknown: Vec<_> = listed
        .iter()
        .filter(|field| !known.contains(*field))
        .collect();
    assert!(
        unknown.is_empty(),
        "oci-spec knows no such field: {unknown:#?}"
    );
}

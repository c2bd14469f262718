//! Logging. (Being written.)

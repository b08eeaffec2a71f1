//! `warren bench`.

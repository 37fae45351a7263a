//! The thin drivers over tokio, quinn and rustls.

pub mod pipe;
pub mod stream;
pub mod tls;

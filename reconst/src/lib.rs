//! The ISP's reconstitution server.

pub mod accounts;
pub mod authority;
pub mod provision;
pub mod state;

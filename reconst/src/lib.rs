//! The ISP's reconstitution server.

pub mod accounts;
pub mod authority;
pub mod egress;
pub mod provision;
pub mod state;

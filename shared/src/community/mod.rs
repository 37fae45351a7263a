//! Who is here and may do what.
//!
//! [`member`] says what a certificate is worth, [`profile`] is the file that a member keeps, [`invite`] and [`enrol`] are how it gets one;
//! [`quota`] says what a user may spend and has. The rest are the messages of the LAN and of the login, and what is known of the LAN's
//! relays: all sans-IO.

pub mod announce;
pub mod enrol;
pub mod gate;
pub mod hello;
pub mod invite;
pub mod line_rate;
pub mod listed;
pub mod login;
pub mod member;
pub mod probe;
pub mod profile;
pub mod quota;
pub mod roster;
pub mod weight;

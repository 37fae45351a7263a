//! A LAN user's proxy.

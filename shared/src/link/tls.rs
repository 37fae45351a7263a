//! Certificates in use: TLS configurations.

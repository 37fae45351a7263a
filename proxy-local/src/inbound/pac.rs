//! The PAC file: JavaScript by which a browser sets itself up for this proxy.

use std::net::SocketAddr;

/// The file for a proxy that was found on `listen`. There is no `DIRECT` behind the proxy: a browser whose proxy is down
/// says so, rather than go around it unnoticed.
pub(super) fn file(listen: SocketAddr, bypasses_local: bool) -> String {
    let local = if bypasses_local {
        "  if (isPlainHostName(host) || dnsDomainIs(host, \".local\") || dnsDomainIs(host, \".home.arpa\")) return \"DIRECT\";\n"
    } else {
        ""
    };
    format!("function FindProxyForURL(url, host) {{\n{local}  return \"PROXY {listen}; SOCKS5 {listen}\";\n}}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_names_go_direct_only_if_they_bypass() {
        let listen = SocketAddr::from(([127, 0, 0, 1], 1080));
        assert!(file(listen, true).contains("DIRECT"));
        let all = file(listen, false);
        assert!(!all.contains("DIRECT") && all.contains("PROXY 127.0.0.1:1080; SOCKS5 127.0.0.1:1080"), "{all}");
    }
}

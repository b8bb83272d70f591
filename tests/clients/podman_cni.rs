//! podman 4 with `network_backend = "cni"` and a configuration of the type `cnet`, rootless: the plug-in
//! runs in the namespaces of podman's networks.

use std::fs;
use std::time::Duration;

use crate::caller::{Caller, has};
use crate::lab::Lab;
use crate::lab::binaries::binary;

/// For podman with all its processes.
const LIMIT: Duration = Duration::from_secs(90);

/// podman's configuration, the network's, and an image of busybox alone.
const SETUP: &str = r#"
mkdir -p .config/containers .config/cni/net.d image/bin image/etc image/tmp
cat > .config/containers/containers.conf <<END
[engine]
network_cmd_path = "$SLIRP"
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
[network]
network_backend = "cni"
cni_plugin_dirs = ["$PLUGINS"]
[containers]
log_driver = "k8s-file"
END
printf '[storage]\ndriver = "vfs"\n' > .config/containers/storage.conf
cat > .config/cni/net.d/lan.conflist <<END
{"cniVersion": "0.4.0", "name": "lan", "plugins": [{"type": "cnet", "subnet": "10.77.0.0/16",
 "capabilities": {"portMappings": true, "ips": true, "mac": true, "aliases": true}}]}
END
cp /bin/busybox image/bin/
for name in sh nc ip cat sleep echo grep nslookup; do ln -sf busybox image/bin/$name; done
tar -C image -c . | podman import - small > import.log 2>&1 || { cat import.log; exit 77; }
"#;

/// Two containers by name, a published port, a fixed address, and a restart.
const USE: &str = r#"
podman run -d --name web --network lan --ip 10.77.0.9 -p 127.0.0.1:18082:80 small \
    sh -c 'while true; do nc -l -p 80 -e /bin/echo hello; done' > /dev/null
ask() { podman run --rm --network lan small sh -c "$1"; }
ask 'nslookup web | grep -o 10.77.0.9; nc -w 3 web 80 < /dev/null'
for i in 1 2 3 4 5 6 7 8 9; do
    answer=$(busybox nc -w 2 127.0.0.1 18082 < /dev/null 2> /dev/null)
    test -n "$answer" && break
    sleep 0.3
done
echo "published: $answer"
podman restart -t 0 web > /dev/null
ask 'nc -w 3 web 80 < /dev/null'
podman rm -f -t 0 web > /dev/null
"#;

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn podman_joins_containers_by_cni() {
    if !has(&["podman", "runc", "newuidmap", "busybox", "tar"]) {
        return;
    }
    let lab = Lab::direct();
    let caller = Caller::new(&lab);
    let plugins = lab.directory().join("plugins");
    fs::create_dir(&plugins).expect("a directory of our own");
    fs::copy(binary("cnet-cni"), plugins.join("cnet")).expect("a copy of the plug-in");
    let script = |text: &str| caller.script(text).env("PLUGINS", &plugins).run(LIMIT);
    let done = script(SETUP);
    if done.code() == Some(77) {
        eprintln!("SKIPPED: podman does not run here: {done}");
        return;
    }
    let done = script(USE);
    assert!(done.success(), "{done}");
    assert_eq!(
        done.stdout, "10.77.0.9\nhello\npublished: hello\nhello\n",
        "{done}"
    );
}

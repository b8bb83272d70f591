//! A virtual machine: a distribution's kernel, an initramfs made of busybox and a script of the
//! test's, and QEMU in software emulation, which needs nothing of the machine.
//!
//! The kernel comes out of Debian's package for clouds, which is small: it is downloaded with apt
//! once, unpacked in the build's own directory, and installed nowhere. What the script prints is
//! what the test reads ([`Running::wait_for_line`]).

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Lab;
use super::process::{Launch, Running};

/// How long a download may take.
const DOWNLOAD: Duration = Duration::from_secs(120);

/// Downloads and unpacks the package that `linux-image-cloud-amd64` stands for, unless it is there;
/// prints where the kernel and its modules are. Newer packages have them under `usr`, compressed.
const FETCH: &str = r#"
set -e
find_package() {
    apt-cache depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: \(linux-image-.*\)/\1/p' | head -n 1
}
package=$(find_package)
test -n "$package" || { apt-get -qq update >&2; package=$(find_package); }
test -n "$package"
if ! test -d "$package"; then
    rm -rf part; mkdir part; cd part
    apt-get -qq download "$package" >&2 || { apt-get -qq update >&2; apt-get -qq download "$package" >&2; }
    dpkg-deb -x ./*.deb .
    base=.; if test -d usr/lib/modules; then base=usr; fi
    find $base/lib/modules -name '*.ko.xz' -exec xz -d {} +
    for version in $base/lib/modules/*; do depmod -b $base "${version##*/}"; done
    rm ./*.deb; cd ..; mv part "$package"
fi
ls -d "$PWD/$package"/boot/vmlinuz-*
dirname "$(find "$PWD/$package" -name modules.dep)"
"#;

/// A kernel and its modules.
pub struct Kernel {
    image: PathBuf,
    /// In the order to insert them: what a machine needs to have a virtio network card.
    modules: Vec<PathBuf>,
}

impl Kernel {
    /// Has one, kept in `directory` from the first time on, or tells why this machine cannot.
    pub fn fetch(directory: &Path) -> Result<Kernel, String> {
        for program in ["qemu-system-x86_64", "busybox", "cpio", "apt-get"] {
            let found = Launch::new("sh").args(["-c", &format!("command -v {program}")]);
            if !found.run(Duration::from_secs(5)).success() {
                return Err(format!("{program} is not installed"));
            }
        }
        let directory = directory.join("kernels");
        fs::create_dir_all(&directory).expect("the build's directory is ours");
        let directory = directory.to_str().expect("a UTF-8 path");
        let fetched = Launch::new("sh")
            .args(["-c", &format!("cd '{directory}'\n{FETCH}")])
            .run(DOWNLOAD);
        if !fetched.success() {
            return Err(format!("no kernel: {fetched}"));
        }
        let mut lines = fetched.stdout.lines();
        let mut next = || lines.next().map(PathBuf::from);
        let (Some(image), Some(modules)) = (next(), next()) else {
            return Err(format!("no kernel: {fetched}"));
        };
        let modules = insertion_order(&modules, &["virtio_pci", "virtio_net"]);
        Ok(Kernel { image, modules })
    }

    /// Starts a machine that runs `script` as its first program, with busybox's programs in its
    /// path and its virtual file systems mounted, and is told `network` by QEMU's arguments.
    pub fn boot(&self, lab: &Lab, script: &str, network: &[String]) -> Running {
        let initramfs = self.initramfs(lab, script);
        // With `reboot=t` and a panic at once, a machine that fails ends instead of hanging.
        let command_line = "console=ttyS0 quiet panic=-1 reboot=t";
        lab.command("qemu-system-x86_64")
            .args("-accel tcg -m 256 -nodefaults -no-user-config -display none".split(' '))
            .args(["-no-reboot", "-serial", "stdio"])
            .args(["-append", command_line, "-kernel"])
            .arg(&self.image)
            .arg("-initrd")
            .arg(initramfs)
            .args(network)
            .spawn()
    }

    fn initramfs(&self, lab: &Lab, script: &str) -> PathBuf {
        let root = lab.directory().join("initramfs");
        if root.exists() {
            fs::remove_dir_all(&root).expect("a directory of ours");
        }
        fs::create_dir_all(root.join("lib")).expect("a directory of ours");
        for (n, module) in self.modules.iter().enumerate() {
            let copy = root.join(format!("lib/{n:02}.ko"));
            fs::copy(module, copy).expect("a module of the package");
        }
        let init = format!(
            "#!/bin/busybox sh
            /bin/busybox mkdir -p /proc /sys /dev /etc /tmp
            /bin/busybox --install -s /bin
            export PATH=/bin
            mount -t proc none /proc; mount -t sysfs none /sys; mount -t devtmpfs none /dev
            for module in /lib/*.ko; do insmod $module; done
            {script}"
        );
        fs::write(root.join("init"), init).expect("a file of ours");
        let executable = fs::Permissions::from_mode(0o755);
        fs::set_permissions(root.join("init"), executable).expect("a file of ours");
        let pack = "mkdir bin && cp \"$(command -v busybox)\" bin/ && \
                    find . | cpio --quiet -o -H newc > ../initramfs.cpio";
        let directory = root.to_str().expect("a UTF-8 path");
        let packed = Launch::new("sh")
            .args(["-c", &format!("cd '{directory}' && {pack}")])
            .run(Duration::from_secs(10));
        assert!(packed.success(), "{packed}");
        lab.directory().join("initramfs.cpio")
    }
}

/// The modules called `wanted` and those they need, as `modules.dep` has it: behind each module
/// what it needs, what is needed most in last place. What is built in is not listed.
fn insertion_order(directory: &Path, wanted: &[&str]) -> Vec<PathBuf> {
    let list = fs::read_to_string(directory.join("modules.dep")).expect("made by depmod");
    let mut order: Vec<PathBuf> = Vec::new();
    for name in wanted {
        let start = format!("/{name}.ko:");
        let Some(line) = list.lines().find(|line| line.contains(&start)) else {
            continue;
        };
        let words = line.split_whitespace().rev();
        for module in words.map(|word| directory.join(word.trim_end_matches(':'))) {
            if !order.contains(&module) {
                order.push(module);
            }
        }
    }
    order
}

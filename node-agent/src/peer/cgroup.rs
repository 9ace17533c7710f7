//! Which service of systemd a process belongs to, by its control group.

use alcazar_identity::UnitName;

/// The service that a process belongs to, from its `/proc/<pid>/cgroup`: the first one below `system.slice`.
///
/// Only the system manager makes control groups there. What a user's own manager calls its units (below
/// `user@<uid>.service`) is up to that user, and a container's are up to whoever is in it: neither counts.
///
/// # Errors
/// Why it belongs to none, in words for the log.
///
/// **Source**: cgroups(7), systemd.slice(5).
pub fn unit_of(cgroup_file: &str) -> Result<UnitName, String> {
    let path = managed_path(cgroup_file).ok_or("its control group is not shown as systemd's")?;
    let mut components = path.split('/');
    if components.next() != Some("") {
        return Err(format!("its control group {path:?} is no path"));
    }
    if path.split('/').any(|component| component == "..") {
        return Err(format!("its control group {path:?} is outside of what the agent can see: it needs the host's"));
    }
    if components.next() != Some("system.slice") {
        return Err(format!("its control group {path:?} is not below system.slice"));
    }
    let first = components.find(|component| !component.ends_with(".slice")).unwrap_or_default();
    // systemd puts one before what would otherwise be mistaken for a file of the kernel's.
    let name = first.strip_prefix('_').unwrap_or(first);
    match name.parse::<UnitName>() {
        Ok(unit) if !is_a_users_manager(&unit) => Ok(unit),
        _ => Err(format!("its control group {path:?} is no service's")),
    }
}

/// The path in the hierarchy that systemd keeps: its own of version 1 where there is one, else that of version 2.
fn managed_path(cgroup_file: &str) -> Option<&str> {
    let find = |id: &dyn Fn(&str, &str) -> bool| {
        cgroup_file.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':');
            let (number, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
            id(number, controllers).then_some(path)
        })
    };
    find(&|_, controllers| controllers == "name=systemd")
        .or_else(|| find(&|number, names| number == "0" && names.is_empty()))
}

fn is_a_users_manager(unit: &UnitName) -> bool {
    unit.as_str().starts_with("user@")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_of_the_first_service_below_the_systems_slice() {
        let check = |file: &str, expected: Option<&str>| {
            let unit = unit_of(file);
            assert_eq!(unit.as_ref().ok().map(UnitName::as_str), expected, "{file:?}: {unit:?}");
        };
        check("0::/system.slice/web.service\n", Some("web.service"));
        check("0::/system.slice/system-web.slice/web@1.service\n", Some("web@1.service"));
        // A service to which its part of the tree was delegated may name what is below as it likes.
        check("0::/system.slice/web.service/db.service\n", Some("web.service"));
        check("0::/system.slice/web.service/system.slice/db.service\n", Some("web.service"));
        check("0::/system.slice/_cgroup.web.service\n", Some("cgroup.web.service"));
        check(
            "12:pids:/\n1:name=systemd:/system.slice/web.service\n0::/system.slice/other.service\n",
            Some("web.service"),
        );
        check("2:cpu,cpuacct:/system.slice/other.service\n0::/system.slice/web.service\n", Some("web.service"));
        for nobodys in [
            "",
            "\n",
            "0::/\n",
            "0::/web.service\n",
            "0::/system.slice\n",
            "0::/system.slice/\n",
            "0::system.slice/web.service\n",
            "0::/system.slice/docker-0123.scope\n",
            "0::/system.slice/docker-0123.scope/system.slice/web.service\n",
            "0::/system.slice/web.service (deleted)\n",
            "0::/system.slice/user@1000.service/app.slice/web.service\n",
            "0::/user.slice/user-1000.slice/user@1000.service/app.slice/web.service\n",
            "0::/user.slice/user-1000.slice/user@1000.service/system.slice/web.service\n",
            "0::/docker/0123/system.slice/web.service\n",
            "0::/../../system.slice/web.service\n",
            "0::/system.slice/../web.service\n",
            "3:memory:/system.slice/web.service\n",
            "1:name=systemd:/user.slice\n0::/system.slice/web.service\n",
        ] {
            check(nobodys, None);
        }
    }
}

"""Free memory: the host's, and what the limits of a container or job leave of it."""

from hcnr_jax.runtime.memory import free_bytes, free_cgroup_bytes, free_host_bytes


def limit(folder, most, used, cached, first=False):
    folder.mkdir(parents=True, exist_ok=True)
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if first else ("memory.max", "memory.current")
    for name, value in zip(names, (most, used), strict=True):
        (folder / name).write_text(f"{value}\n")
    key = "total_inactive_file" if first else "inactive_file"
    (folder / "memory.stat").write_text(f"anon 5\n{key} {cached}\n")


def test_the_limits_of_every_level_count(tmp_path):
    groups, mount = tmp_path / "groups", tmp_path / "mount"
    groups.write_text("0::/slurm/job_7/step_0\n")
    limit(mount / "slurm/job_7", 1000, 900, 200)
    limit(mount / "slurm/job_7/step_0", "max", 800, 0)
    assert list(free_cgroup_bytes(groups, mount)) == [300]
    limit(mount, 250, 300, 0)
    assert sorted(free_cgroup_bytes(groups, mount)) == [0, 300]


def test_a_container_sees_its_own_group_as_the_root(tmp_path):
    groups, mount = tmp_path / "groups", tmp_path / "mount"
    groups.write_text("5:cpu:/kubepods/pod1\n4:memory:/kubepods/pod1\n")
    limit(mount / "memory", 500, 100, 50, first=True)
    assert list(free_cgroup_bytes(groups, mount)) == [450]


def test_no_limit_is_no_limit(tmp_path):
    (tmp_path / "groups").write_text("0::/\n")
    limit(tmp_path / "mount", "max", 100, 0)
    assert list(free_cgroup_bytes(tmp_path / "groups", tmp_path / "mount")) == []
    assert list(free_cgroup_bytes(tmp_path / "absent", tmp_path / "mount")) == []


def test_what_is_free_is_there():
    assert 1e6 < free_bytes() <= free_host_bytes() * 1.1

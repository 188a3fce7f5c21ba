# Spack package, for Spack 1.0 and later; +cuda needs the packages of Spack 1.1. From the folder of the sources:
#   spack repo add cluster/spack/spack_repo/transmamba
#   spack dev-build --source-path . transmamba@main +cuda cuda_arch=90 ^openmpi schedulers=slurm
from spack_repo.builtin.build_systems.cmake import CMakePackage, generator
from spack_repo.builtin.build_systems.cuda import CudaPackage

from spack.package import *


class Transmamba(CMakePackage, CudaPackage):
    """Distributed trainer for TransMamba language models: attention up to a TransPoint, a state-space scan behind it."""

    license("Apache-2.0")
    # Of the sources that `dev-build` and `develop` are given.
    version("main")

    variant("native", default=True, description="Use every instruction of the CPU it is built on")

    depends_on("c", type="build")
    depends_on("cxx", type="build")
    depends_on("cmake@3.25:", type="build")
    depends_on("ninja", type="build")
    depends_on("pkgconfig", type="build")
    depends_on("mpi")
    depends_on("hdf5@1.10: ~mpi")
    depends_on("boost@1.74: +program_options")
    depends_on("tomlplusplus")
    depends_on("nlohmann-json@3.11:")
    depends_on("openblas")
    depends_on("sentencepiece")
    depends_on("openssl@3:")
    depends_on("zlib-api")
    with when("+cuda"):
        depends_on("cuda@13:")
        depends_on("nccl")
        # The trainer has code for every GPU from 8.0 on, whatever cuda_arch says; NCCL is compiled for those named.
        for arch in CudaPackage.cuda_arch_values:
            depends_on(f"nccl cuda_arch={arch}", when=f"cuda_arch={arch}")

    generator("ninja")

    def cmake_args(self):
        return [
            self.define_from_variant("TMAMBA_CUDA", "cuda"),
            self.define_from_variant("TMAMBA_NATIVE", "native"),
            self.define("TMAMBA_TESTS", self.run_tests),
        ]

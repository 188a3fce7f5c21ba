# Spack package. From the folder of the sources:
#   spack repo add cluster/spack
#   spack dev-build --source-path . transmamba@main +cuda ^openmpi schedulers=slurm +pmix
from spack.package import *


class Transmamba(CMakePackage):
    """Distributed trainer for TransMamba language models: attention up to a TransPoint, a state-space scan behind it."""

    license("Apache-2.0")
    version("main")

    variant("cuda", default=False, description="Train on NVIDIA GPUs")
    variant("native", default=True, description="Use every instruction of the CPU it is built on")

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
    depends_on("cuda@13:", when="+cuda")
    depends_on("nccl", when="+cuda")

    generator("ninja")

    def cmake_args(self):
        return [
            self.define_from_variant("TMAMBA_CUDA", "cuda"),
            self.define_from_variant("TMAMBA_NATIVE", "native"),
            self.define("TMAMBA_TESTS", self.run_tests),
        ]

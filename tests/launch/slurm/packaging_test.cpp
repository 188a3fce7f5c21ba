// The ways of cluster/ to install the trainer, as far as they can be tried without building an image: the image's
// packages, the Spack package, the module file.
#include <gtest/gtest.h>

#include <fstream>
#include <regex>
#include <set>
#include <sstream>

#include "tests/launch/program.h"
#include "tests/source_dir.h"

namespace tmamba {
namespace {

namespace fs = std::filesystem;

const fs::path kSource = TMAMBA_SOURCE_DIR;

std::set<std::string> words_of(const std::string& text) {
  std::istringstream in(text);
  std::set<std::string> words;
  for (std::string word; in >> word;) words.insert(word);
  return words;
}

class Packaging : public testing::Test {
 protected:
  void SetUp() override { enter_test_folder("packaging"); }
  void TearDown() override { leave_test_folder(); }
};

// The image that runs has the package of every library that the program is linked with.
TEST_F(Packaging, ImageHasTheProgramsLibraries) {
  const std::string steps = read_file(kSource / "cluster/image.sh"), list = "\nrun_packages=(";
  const size_t begin = steps.find(list) + list.size(), end = steps.find(")", begin);
  ASSERT_NE(end, std::string::npos);
  const std::set<std::string> installed = words_of(steps.substr(begin, end - begin));
  const Outcome needed = shell(
      "program=" + command_line("", 0) +
      "; for name in $(readelf -d $program | sed -n 's/.*(NEEDED).*\\[\\(.*\\)\\]/\\1/p'); do file=$(ldd $program | "
      "awk -v name=$name '$1 == name {print $3}'); case $file in /*) file=$(realpath $file); "
      "echo $name $({ dpkg -S $file || dpkg -S ${file#/usr}; } 2>/dev/null | sed 's/:.*//;q');; esac; done");
  ASSERT_EQ(needed.code, 0) << needed.output;
  std::istringstream lines(needed.output);
  int libraries = 0;
  for (std::string line; std::getline(lines, line); ++libraries) {
    std::istringstream words(line);
    std::string library, package;
    words >> library >> package;
    // Those of the CUDA build are copied; the compiler's and C's own are in every Debian; libopenblas0 chooses one.
    if (std::regex_search(library, std::regex("^(libcu|libnccl)"))) continue;
    if (std::set<std::string>{"libc6", "libgcc-s1", "libstdc++6"}.contains(package)) continue;
    if (package.starts_with("libopenblas0-")) package = "libopenblas0";
    EXPECT_TRUE(installed.contains(package)) << library << " is of " << package << ", which cluster/image.sh lacks";
  }
  EXPECT_GT(libraries, 5) << needed.output;
}

// Both images run the same steps, each of them one that is there, on all that CMake needs.
TEST_F(Packaging, ImagesAreBuiltAlike) {
  const std::string steps = read_file(kSource / "cluster/image.sh"), cmake = read_file(kSource / "CMakeLists.txt");
  const auto called = [](const std::string& text) {
    std::vector<std::string> found;
    const std::regex call("\\n(?!COPY)[^#\\n]*image\\.sh ([a-z]+)");
    for (std::sregex_iterator one(text.begin(), text.end(), call), end; one != end; ++one) found.push_back((*one)[1]);
    return found;
  };
  const std::string apptainer = read_file(kSource / "cluster/transmamba.def");
  const std::vector<std::string> docker_steps = called(read_file(kSource / "cluster/Dockerfile"));
  EXPECT_EQ(docker_steps, called(apptainer));
  EXPECT_EQ(docker_steps.size(), 3u);
  for (const std::string& step : docker_steps) EXPECT_NE(steps.find("\n" + step + "() {"), std::string::npos) << step;
  EXPECT_EQ(shell("bash -n '" + (kSource / "cluster/image.sh").string() + "'").code, 0);

  // Folders with targets, folders and files to install.
  std::set<std::string> needed{"CMakeLists.txt"};
  const std::regex folder("\nadd_subdirectory\\((\\w+)\\)"),
      install("\ninstall\\((?:DIRECTORY|FILES) ([\\w. ]+) DESTINATION");
  for (std::sregex_iterator one(cmake.begin(), cmake.end(), folder), end; one != end; ++one) needed.insert((*one)[1]);
  for (std::sregex_iterator one(cmake.begin(), cmake.end(), install), end; one != end; ++one)
    needed.merge(words_of((*one)[1]));
  EXPECT_GT(needed.size(), 8u);
  const std::set<std::string> left_out = words_of(read_file(kSource / ".dockerignore"));
  for (const std::string& name : needed) {
    EXPECT_NE(apptainer.find("\n    " + name + " /src/\n"), std::string::npos) << name;
    EXPECT_FALSE(left_out.contains(name)) << name;
  }
}

// Spack's package, with Spack's words replaced by ones that write down what is said: its options are CMake's.
TEST_F(Packaging, SpackPackageSetsOptionsThatAre) {
  std::ofstream("run.py") << R"python(
import sys, types
said = []
class CMakePackage:
    run_tests = False
    def define(self, name, value): return name
    def define_from_variant(self, name, variant):
        assert variant in [arguments[0] for word, arguments in said if word == "variant"], variant
        return name
class CudaPackage:
    cuda_arch_values = ("80", "90")
def say(word): return lambda *arguments, **named: said.append((word, arguments))
class When:
    def __init__(self, condition): pass
    def __enter__(self): pass
    def __exit__(self, *error): pass
def module(name, **words):
    sys.modules[name] = types.ModuleType(name)
    vars(sys.modules[name]).update(words)
for name in ["spack", "spack_repo", "spack_repo.builtin", "spack_repo.builtin.build_systems"]: module(name)
module("spack_repo.builtin.build_systems.cmake", CMakePackage=CMakePackage, generator=say("generator"))
module("spack_repo.builtin.build_systems.cuda", CudaPackage=CudaPackage)
module("spack.package", when=When, **{word: say(word) for word in ["license", "version", "variant", "depends_on"]})
# As CudaPackage's does.
said.append(("variant", ("cuda",)))
names = {}
exec(compile(open(sys.argv[1]).read(), sys.argv[1], "exec"), names)
for option in names["Transmamba"]().cmake_args(): print("option", option)
for word, arguments in said: print(word, arguments[0])
)python";
  const Outcome outcome =
      shell("python3 run.py '" +
            (kSource / "cluster/spack/spack_repo/transmamba/packages/transmamba/package.py").string() + "'");
  ASSERT_EQ(outcome.code, 0) << outcome.output;
  const std::string cmake = read_file(kSource / "CMakeLists.txt");
  std::istringstream lines(outcome.output);
  int options = 0;
  for (std::string word, value; lines >> word && std::getline(lines, value);) {
    if (word != "option") continue;
    ++options;
    EXPECT_TRUE(std::regex_search(cmake, std::regex("(option|set)\\(" + value.substr(1) + " "))) << value;
  }
  EXPECT_EQ(options, 3) << outcome.output;
  // Every library that CMake looks for is depended on.
  for (const char* name :
       {"mpi", "hdf5", "boost", "tomlplusplus", "nlohmann-json", "openblas", "sentencepiece", "openssl"})
    EXPECT_NE(outcome.output.find(std::string("depends_on ") + name), std::string::npos) << name << "\n"
                                                                                         << outcome.output;
}

// The module file under Lmod, beside a module of MPI.
TEST_F(Packaging, ModuleLoads) {
  fs::create_directories("modules/transmamba");
  fs::create_directories("modules/openmpi");
  fs::copy(kSource / "cluster/modulefiles/transmamba.lua", "modules/transmamba/0.1.0.lua");
  std::ofstream("modules/openmpi/4.1.lua") << "setenv(\"MPI_IS_LOADED\", \"yes\")\n";
  const Outcome outcome = shell(
      "export MODULEPATH=$PWD/modules LMOD_SETTARG_CMD=: HOME=$PWD; bash -c '. /usr/share/lmod/lmod/init/bash && "
      "module load "
      "transmamba && echo path ${PATH%%:*} && echo source $TRANSMAMBA_SOURCE && echo mpi $MPI_IS_LOADED && module "
      "whatis "
      "transmamba' 2>&1");
  EXPECT_EQ(outcome.code, 0) << outcome.output;
  for (const char* part : {"path /opt/transmamba/bin\n", "source /opt/transmamba/share/transmamba\n", "mpi yes\n",
                           "distributed trainer (0.1.0)"}) {
    EXPECT_NE(outcome.output.find(part), std::string::npos) << part << " is missing in\n" << outcome.output;
  }
}

}  // namespace
}  // namespace tmamba

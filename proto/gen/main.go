// Command gen generates the Go code of a .proto file. It does not need protoc:
//
//	go run -C proto/gen . proto/greeter.proto         # write greeter.pb.go and greeter.pb.micro.go beside it
//	go run -C proto/gen . -verify proto/greeter.proto # exit 1 if these files differ from what greeter.proto generates
//
// It takes one file, because protoc-gen-micro keeps the names of imported packages from one file to the next.
//
// The package protocompile compiles the .proto file. The generators of protoc-gen-go and protoc-gen-micro,
// which are linked into this program, generate the code. Their versions are in go.mod: to use newer generators,
// raise the version there and run this command again. The first run downloads and compiles the generators,
// about 15 seconds on two cores; later runs take one second.
package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"

	"github.com/bufbuild/protocompile"
	"github.com/bufbuild/protocompile/protoutil"
	"github.com/micro/micro/v2/cmd/protoc-gen-micro/generator"
	_ "github.com/micro/micro/v2/cmd/protoc-gen-micro/plugin/micro"
	"google.golang.org/protobuf/cmd/protoc-gen-go/internal_gengo"
	"google.golang.org/protobuf/compiler/protogen"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/pluginpb"
)

func main() {
	verify := flag.Bool("verify", false, "compare with the files on disk instead of writing them")
	flag.Parse()
	if flag.NArg() != 1 {
		fmt.Fprintln(os.Stderr, "want one argument: the path of a .proto file in the repository")
		os.Exit(2)
	}
	if err := run("../..", flag.Arg(0), *verify); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// run generates the code of a source: the path of the .proto file below root, and the name under which the generated code
// registers it in protobuf's registry. It writes the files below root, or compares them with the files there if verify is set.
func run(root, source string, verify bool) error {
	request, err := compile(root, source)
	if err != nil {
		return fmt.Errorf("compiling %q: %w", source, err)
	}
	files, err := messages(request)
	if err != nil {
		return fmt.Errorf("generating messages of %q: %w", source, err)
	}
	for _, f := range append(files, services(request)...) {
		path, code := filepath.Join(root, f.GetName()), []byte(f.GetContent())
		if !verify {
			if err := os.WriteFile(path, code, 0o644); err != nil {
				return fmt.Errorf("writing generated code: %w", err)
			}
			continue
		}
		if onDisk, err := os.ReadFile(path); err != nil || !bytes.Equal(onDisk, code) {
			return fmt.Errorf("verifying %q: the file differs from what %q generates; run `make proto` and commit the result", f.GetName(), source)
		}
	}
	return nil
}

// compile returns the request that protoc would send to its plugins for a source.
func compile(root, source string) (*pluginpb.CodeGeneratorRequest, error) {
	compiler := protocompile.Compiler{
		Resolver:       &protocompile.SourceResolver{ImportPaths: []string{root}},
		SourceInfoMode: protocompile.SourceInfoStandard, // keeps the comments
	}
	compiled, err := compiler.Compile(context.Background(), source)
	if err != nil {
		return nil, err
	}
	return &pluginpb.CodeGeneratorRequest{
		FileToGenerate: []string{source},
		Parameter:      proto.String("paths=source_relative"),
		ProtoFile:      []*descriptorpb.FileDescriptorProto{protoutil.ProtoFromFileDescriptor(compiled[0])},
	}, nil
}

// messages generates the file .pb.go, as the main function of protoc-gen-go does.
func messages(request *pluginpb.CodeGeneratorRequest) ([]*pluginpb.CodeGeneratorResponse_File, error) {
	plugin, err := protogen.Options{}.New(request)
	if err != nil {
		return nil, err
	}
	for _, f := range plugin.Files {
		internal_gengo.GenerateFile(plugin, f)
	}
	response := plugin.Response()
	if response.Error != nil {
		return nil, fmt.Errorf("%s", response.GetError())
	}
	return response.File, nil
}

// services generates the file .pb.micro.go, as the main function of protoc-gen-micro does. On an error this
// generator exits the process.
func services(request *pluginpb.CodeGeneratorRequest) []*pluginpb.CodeGeneratorResponse_File {
	g := generator.New()
	g.Request = request
	g.CommandLineParameters(request.GetParameter())
	g.WrapTypes()
	g.SetPackageNames()
	g.BuildTypeNameMap()
	g.GenerateAllFiles()
	return g.Response.File
}
